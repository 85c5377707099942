"""Faults of processes that the launcher has detected."""

import time
from dataclasses import dataclass

from stretto.launcher.processes import ProcessSnapshot

PROOF_S = 2.0  # a process that has been stopped for this long is not expected to resume by itself


@dataclass(frozen=True, slots=True)
class Fault:
    """Fault that makes a restart necessary.

    Attributes:
        processes: Faulty processes; empty if the fault concerns the whole server.
        spares_requests: True if requests in flight can end before the restart.
    """

    processes: list[ProcessSnapshot]
    description: str
    spares_requests: bool = False

    def __str__(self) -> str:
        return f"{named(self.processes)} {self.description}".lstrip()


class PendingFault:
    """Suspected fault that may still clear."""

    def __init__(self) -> None:
        self.reason = ""
        self._since = time.monotonic()

    def update(self, reason: str) -> bool:
        """Set the current fault, '' for none; return True if it differs from the previous one."""
        if reason == self.reason:
            return False
        self.reason = reason
        self._since = time.monotonic()
        return True

    @property
    def is_proven(self) -> bool:
        """True if the same fault has lasted for PROOF_S."""
        return bool(self.reason) and time.monotonic() - self._since >= PROOF_S


def named(processes: list[ProcessSnapshot]) -> str:
    """Return the names and pids of processes, for messages."""
    return ", ".join(f"{process.name} (pid {process.pid})" for process in processes)
