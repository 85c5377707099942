"""What is wrong with a server that is watched."""

import time
from dataclasses import dataclass

from stretto.serving.processes import Process

PROOF_S = 2.0  # what a signal has stopped for so long is not going on by itself


@dataclass(frozen=True, slots=True)
class Trouble:
    """Processes without which a server cannot go on, and what is wrong with them; of none of them, with all of it."""

    processes: list[Process]
    what: str

    def __str__(self) -> str:
        return f"{named(self.processes)} {self.what}".lstrip()


class Doubt:
    """What is wrong with a server that may yet come right by itself."""

    def __init__(self) -> None:
        self.reason = ""
        self._since = time.monotonic()

    def is_news(self, reason: str) -> bool:
        """Take note of what is wrong now, or of nothing; whether that is something else than before."""
        if reason == self.reason:
            return False
        self.reason, self._since = reason, time.monotonic()
        return True

    @property
    def is_proven(self) -> bool:
        """Whether it has lasted for too long."""
        return bool(self.reason) and time.monotonic() - self._since >= PROOF_S


def named(processes: list[Process]) -> str:
    """Processes as a message names them."""
    return ", ".join(f"{process.name} (pid {process.pid})" for process in processes)
