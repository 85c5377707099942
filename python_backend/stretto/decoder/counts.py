"""Decoder counters, updated by several threads."""

import threading
from collections import Counter

NAMES = ("chunks", "failed", "cancelled", "expired", "batches", "windows", "frames")


class Counts:
    """Counters by name; values only increase."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._largest_batch = 0
        self._decode_s = 0.0

    def add(self, name: str, by: int = 1) -> None:
        """Increase one of NAMES."""
        with self._counting:
            self._counts[name] += by

    def add_batch(self, num_windows: int, num_frames: int, spent_s: float) -> None:
        """Count a batch of windows of `num_frames` frames each that took `spent_s` seconds."""
        with self._counting:
            self._counts += Counter(batches=1, windows=num_windows, frames=num_windows * num_frames)
            self._largest_batch = max(self._largest_batch, num_windows)
            self._decode_s += spent_s

    def figures(self) -> dict[str, float]:
        """Return all counters, the largest batch and the total decoding time in seconds."""
        with self._counting:
            counted = {name: self._counts[name] for name in NAMES}
            return counted | {"largest_batch": self._largest_batch, "decode_s": self._decode_s}
