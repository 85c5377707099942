"""Chunk rate that the decoder can sustain."""

BUSY_SHARE = 0.9  # target utilisation; beyond it chunks only queue
WINDOW_MEMORY = 64  # number of windows in the moving average


class Pace:
    """Moving average of the decoding time per window; written by one thread, read by any."""

    def __init__(self) -> None:
        self._window_s = 0.0  # average decoding time per window
        self.chunk_s = 0.0  # interval between chunks of one utterance at BUSY_SHARE

    def note(self, num_windows: int, spent_s: float, num_speaking: int) -> None:
        """Record that a batch of `num_windows` windows took `spent_s` seconds with `num_speaking` active utterances."""
        weight = min(1.0, num_windows / WINDOW_MEMORY) if self._window_s else 1.0
        self._window_s += weight * (spent_s / num_windows - self._window_s)
        self.chunk_s = num_speaking * self._window_s / BUSY_SHARE
