"""Faults of a monitored server."""

import time
from dataclasses import dataclass

from stretto.serving.processes import Process

PROOF_S = 2.0  # a process stopped for this long does not resume by itself


@dataclass(frozen=True, slots=True)
class Trouble:
    """A fault of the server.

    Attributes:
        processes: Processes with the fault; empty if it concerns the whole server.
        what: Description of the fault.
    """

    processes: list[Process]
    what: str

    def __str__(self) -> str:
        return f"{named(self.processes)} {self.what}".lstrip()


class Doubt:
    """A suspected fault that may still clear.

    Attributes:
        reason: Description of the fault; empty if there is none.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._since = time.monotonic()

    def is_news(self, reason: str) -> bool:
        """Record the current fault, or none if `reason` is empty; return True if it differs from the last one."""
        if reason == self.reason:
            return False
        self.reason, self._since = reason, time.monotonic()
        return True

    @property
    def is_proven(self) -> bool:
        """True if the fault has lasted for PROOF_S."""
        return bool(self.reason) and time.monotonic() - self._since >= PROOF_S


def named(processes: list[Process]) -> str:
    """Return names and pids of processes for a message."""
    return ", ".join(f"{process.name} (pid {process.pid})" for process in processes)
