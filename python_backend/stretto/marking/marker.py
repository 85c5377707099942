"""Interface of markers, and the function that loads an installed one."""

from typing import Protocol, cast

import numpy as np

from stretto import entry_points


class MarkerStream(Protocol):
    """State of a marker for one utterance."""

    name: str

    @property
    def num_bytes(self) -> int:
        """Memory that the state uses, in bytes."""
        ...

    def push(self, pcm: np.ndarray, is_final: bool) -> np.ndarray:
        """Mark the next samples, float32 [n] at the codec's sample rate, and return samples, float32 [m].

        A marker that looks ahead holds samples back, and returns them after later calls. In total, it returns as many
        samples as it receives.
        """
        ...


class Marker(Protocol):
    """Marker of generated speech."""

    def stream(self, sample_rate: int, samples_per_frame: int) -> MarkerStream:
        """Begin an utterance, whose chunks usually consist of whole frames of `samples_per_frame` samples."""
        ...


def open_marker(name: str) -> Marker | None:
    """Return the installed marker called `name`, or None if `name` is empty; raise ValueError if it is unknown."""
    if not name:
        return None
    registered = entry_points.find(entry_points.MARKERS, name)
    if registered is None:
        raise ValueError(f"marker: expected one of {entry_points.names(entry_points.MARKERS)}, got {name!r}")
    return cast(Marker, registered.load())
