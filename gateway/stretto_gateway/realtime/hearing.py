"""Audio input buffer: samples that are not committed yet, and the turns detected in them."""

import numpy as np

from stretto_gateway.api_error import refused
from stretto_gateway.held import Held
from stretto_gateway.realtime.settings import ServerVad
from stretto_gateway.realtime.voice_activity import Edge, TurnDetector

SAMPLE_BYTES = 2


class Hearing:
    """Buffer of pcm16 at 24 kHz, at most `max_samples`; with `vad`, silence that belongs to no turn is dropped."""

    def __init__(self, max_samples: int, held: Held):
        self.max_samples, self._held = max_samples, held
        self._pcm = bytearray()
        self._start = 0  # position of the first buffered sample in all received ones
        self.vad: ServerVad | None = None
        self._begin()

    @property
    def end(self) -> int:
        """Number of samples received so far."""
        return self._start + self.num_samples

    @property
    def num_samples(self) -> int:
        """Number of buffered samples."""
        return len(self._pcm) // SAMPLE_BYTES

    def configure(self, vad: ServerVad | None, max_samples: int) -> None:
        """Set the rules of turn detection, None for none; changes apply to audio that arrives from now on."""
        if (vad, max_samples) != (self.vad, self.max_samples):
            self.vad, self.max_samples = vad, max_samples
            self._begin()

    def _begin(self) -> None:
        self._detector = None if self.vad is None else TurnDetector(self.vad, self.end, self.max_samples)

    @property
    def has_window(self) -> bool:
        """True if buffered audio has a window that turn detection has not judged."""
        return self._detector is not None and self._detector.has_window

    @property
    def num_committable(self) -> int:
        """Number of samples that a client may commit: with turn detection, none before speech begins."""
        return self.num_samples if self._detector is None or self._detector.has_begun else 0

    def add(self, pcm: bytes) -> None:
        """Append samples, whose windows must be judged before the next call; raise ApiError if they do not fit."""
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
        """Judge the next window; return the start or end of a turn. The samples of an ended turn must then be taken."""
        assert self._detector is not None
        edge = self._detector.judge()
        if edge is None:
            self._drop(self._detector.keeps_from)
        return edge

    def take(self, until: int | None = None) -> bytes:
        """Remove and return the samples up to `until` (counted since the start), or all."""
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
