"""Waits of the launcher, which a signal ends."""

import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

POLL_S = 0.1


class Waits:
    """Counts the signals that ask the launcher to stop. look: called again and again in every wait."""

    def __init__(self) -> None:
        self.look: Callable[[], None] = lambda: None
        self.num_signals = 0

    def catch_signals(self) -> None:
        """Have signals end waits, and nothing else: from before there is something that must not be left behind."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
                signal.signal(number, self._on_signal)

    def polls(self, seconds: float, num_signals: int = 0) -> Iterator[None]:
        """Every POLL_S, until the time is up or more signals have come."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.num_signals == num_signals:
            yield
            self.look()
            time.sleep(POLL_S)

    def wait(self, seconds: float) -> None:
        """Return when the time is up, or a signal has come."""
        for _ in self.polls(seconds):
            pass

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.num_signals += 1
