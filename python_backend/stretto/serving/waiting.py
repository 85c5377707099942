"""Launcher waits that a signal interrupts."""

import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

POLL_S = 0.1


class Waits:
    """Waits, and the count of signals that request a stop.

    Attributes:
        look: Function called at every poll of a wait.
        num_signals: Number of signals received.
    """

    def __init__(self) -> None:
        self.look: Callable[[], None] = lambda: None
        self.num_signals = 0

    def catch_signals(self) -> None:
        """Install signal handlers that only end waits; called before any resource needs cleanup."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup: keep it so
                signal.signal(number, self._on_signal)

    def polls(self, seconds: float, num_signals: int = 0) -> Iterator[None]:
        """Yield every POLL_S seconds until `seconds` have passed or more than `num_signals` signals have arrived."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.num_signals == num_signals:
            yield
            self.look()
            time.sleep(POLL_S)

    def wait(self, seconds: float) -> None:
        """Return when `seconds` have passed or a signal has arrived."""
        for _ in self.polls(seconds):
            pass

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.num_signals += 1
