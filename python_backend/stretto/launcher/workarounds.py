"""Faults of Triton that the launcher works around, and the choice of workarounds for a server's version."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stretto.launcher.faults import Fault

Version = tuple[int, int]  # server version: (2, 51) is release 24.10, (2, 60) is 25.08, (2, 75) is 26.11


@dataclass(frozen=True, slots=True)
class ServerFault:
    """Fault of Triton.

    Attributes:
        fixed: First version without it; None if no release is known to be without it.
        module: Module of `triton_24_10` that works around it.
    """

    name: str
    fixed: Version | None
    source: str
    detection: str
    module: str

    def affects(self, version: Version | None) -> bool:
        """Return True unless a server of this version is known to be without the fault; None is an unknown version."""
        return version is None or self.fixed is None or version < self.fixed


UNPROVED = "unproved: the same code in the sources of July and August 2026, and no later release was tried"
LOCKS = ServerFault(
    "an abort when a lock of a killed stub is locked", None, UNPROVED, "lock words marked by the kernel", "dead_locks"
)
CRASHES = ServerFault(
    "a crash that never ends the process", None, UNPROVED, "a thread blocks fatal signals at two polls", "crash"
)
STEPS = ServerFault(
    "timers that stop when the clock is set back",
    None,
    "unproved: gRPC 1.81 of 26.08 may be without it, but was not tried",
    "wall clock minus monotonic clock",
    "clock",
)
ABANDONED = ServerFault(
    "an endless wait for a stub that was not asked to end", None, UNPROVED, "a thread of the server in waitpid", "start"
)
UNNOTICED = ServerFault(
    "an endless wait for the first message of a stub that has died",
    (2, 60),
    "python_backend, pull request 408",
    "a child of the server that has ended and was not reaped",
    "start",
)
FAULTS = (LOCKS, CRASHES, STEPS, ABANDONED, UNNOTICED)


class FaultWatch(Protocol):
    """Detector of a fault of a running server."""

    def fault(self) -> Fault | None:
        """Poll; return the fault, or None."""
        ...


class StartHangWatch(Protocol):
    """Detector of a start that hangs."""

    def hang(self) -> str:
        """Poll; return how the start hangs, as words after "the server has"; empty if it does not hang."""
        ...


class Workarounds:
    """Workarounds that a server needs; modules of others are not imported.

    Args:
        version: Version of the server; None if it is unknown.
    """

    def __init__(self, version: Version | None) -> None:
        self._version = version

    def watches(self, pid: int) -> list[FaultWatch]:
        """Return the detectors of faults of the running server with this pid."""
        detectors: list[FaultWatch] = []
        if STEPS.affects(self._version):
            from stretto.launcher.triton_24_10.clock import ClockWatch

            detectors.append(ClockWatch())
        if CRASHES.affects(self._version):
            from stretto.launcher.triton_24_10.crash import CrashWatch

            detectors.append(CrashWatch(pid))
        return detectors

    def start_watch(self, pid: int) -> StartHangWatch | None:
        """Return the detector of a start that hangs for the server with this pid, if it needs one."""
        is_affected = ABANDONED.affects(self._version), UNNOTICED.affects(self._version)
        if not any(is_affected):
            return None
        from stretto.launcher.triton_24_10.start import StartWatch

        return StartWatch(pid, *is_affected)

    def free_locks(self, regions: Iterable[Path]) -> None:
        """Release locks of stubs that were killed, in the server's shared-memory files."""
        if LOCKS.affects(self._version):
            from stretto.launcher.triton_24_10.dead_locks import free_all

            free_all(regions)
