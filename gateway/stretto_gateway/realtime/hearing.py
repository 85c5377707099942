"""What a user says: samples that nobody has committed yet, and the turns in them."""

import numpy as np

from stretto_gateway.api_error import refused
from stretto_gateway.held import Held
from stretto_gateway.realtime.settings import ServerVad
from stretto_gateway.realtime.voice_activity import Edge, TurnDetector

SAMPLE_BYTES = 2


class Hearing:
    """Holds pcm16 at 24 kHz, at most `max_samples`; with `vad`, no more of silence than may belong to a turn."""

    def __init__(self, max_samples: int, held: Held):
        self.max_samples, self._held = max_samples, held
        self._pcm = bytearray()
        self._start = 0  # of the samples that are held, among all that came
        self.vad: ServerVad | None = None
        self._begin()

    @property
    def end(self) -> int:
        """How many samples have come."""
        return self._start + self.num_samples

    @property
    def num_samples(self) -> int:
        """How many are held."""
        return len(self._pcm) // SAMPLE_BYTES

    def configure(self, vad: ServerVad | None, max_samples: int) -> None:
        """Look for turns by these rules, or for none; by others than before, in what comes from now on."""
        if (vad, max_samples) != (self.vad, self.max_samples):
            self.vad, self.max_samples = vad, max_samples
            self._begin()

    def _begin(self) -> None:
        self._detector = None if self.vad is None else TurnDetector(self.vad, self.end, self.max_samples)

    @property
    def has_window(self) -> bool:
        """Whether there is sound in which turns may begin or end that is still to be judged."""
        return self._detector is not None and self._detector.has_window

    @property
    def num_committable(self) -> int:
        """Number of samples that a client may commit: with turn detection, none before speech begins."""
        return self.num_samples if self._detector is None or self._detector.has_begun else 0

    def add(self, pcm: bytes) -> None:
        """Take samples, whose windows are to be judged before there are more; ApiError where there is no room."""
        num_samples = len(pcm) // SAMPLE_BYTES
        room = self.max_samples - (self.num_samples if self._detector is None else 0)
        if num_samples > room:
            expected = f"at most {self.max_samples} samples that are not committed"
            raise refused("audio", expected, f"{self.max_samples - room + num_samples} samples")
        self._held.add(len(pcm))
        self._pcm += pcm
        if self._detector is not None:
            self._detector.add(np.frombuffer(pcm, "<i2"))

    def judge(self) -> Edge | None:
        """Judge the next window: what turn begins or ends with it; one that ends is still to be taken."""
        assert self._detector is not None
        edge = self._detector.judge()
        if edge is None:
            self._drop(self._detector.keeps_from)
        return edge

    def take(self, until: int | None = None) -> bytes:
        """The samples before `until`, or all that are held; they are held no longer."""
        end = len(self._pcm) if until is None else SAMPLE_BYTES * (until - self._start)
        pcm = bytes(self._pcm[:end])
        self._drop(self.end if until is None else until)
        if until is None:
            self._begin()
        return pcm

    def _drop(self, until: int) -> None:
        num_samples = max(0, until - self._start)
        self._held.remove(SAMPLE_BYTES * num_samples)
        del self._pcm[: SAMPLE_BYTES * num_samples]
        self._start += num_samples
