"""How often utterances may send chunks for the decoder to keep up with them."""

BUSY_SHARE = 0.9  # of the time: beyond it, chunks only queue
WINDOW_MEMORY = 64  # windows


class Pace:
    """Follows what windows take. Written by one thread, read by any."""

    def __init__(self) -> None:
        self._window_s = 0.0  # that a window takes, as part of its batch
        self.chunk_s = 0.0  # between chunks of one utterance, for the decoder to be busy for BUSY_SHARE of the time

    def note(self, num_windows: int, spent_s: float, num_speaking: int) -> None:
        """So many windows took `spent_s` seconds as a batch, while so many utterances spoke."""
        weight = min(1.0, num_windows / WINDOW_MEMORY) if self._window_s else 1.0
        self._window_s += weight * (spent_s / num_windows - self._window_s)
        self.chunk_s = num_speaking * self._window_s / BUSY_SHARE
