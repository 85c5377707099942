"""Raised CPU priority for processes that reload models, if the user has the permission."""

import os
import re
import time
from contextlib import suppress
from pathlib import Path

from stretto.serving.processes import GONE, PROC, descendants

RAISE = 10  # nice levels: nine times the CPU share of a default process
HIGHEST = -20  # the kernel's smallest nice level
LOOK_S = 0.5
AUTOGROUP = re.compile(r" nice (-?\d+)$")


class Hurry:
    """Processes of a server that are loading models, with raised priority until `end`.

    Both the processes and their session are raised, because with autogroups Linux schedules a session as one unit
    (sched(7)). Without CAP_SYS_NICE, or a limit on nice that permits it, nothing changes.
    """

    def __init__(self, server_pid: int, is_whole: bool = False) -> None:
        """Record the stubs that already exist; their priority is unchanged.

        Args:
            server_pid: Pid of the server.
            is_whole: True if the server has just been started. It is then raised itself, and its stubs inherit the
                priority.
        """
        self._server, self._is_whole = server_pid, is_whole
        self._others = {process.pid for process in descendants(server_pid)}
        self._raised = set[int]()
        self._normal = os.getpriority(os.PRIO_PROCESS, 0)
        self._raise_by = min(RAISE, self._normal - HIGHEST)  # the kernel would cut off more
        self._session_nice: int | None = None
        self._next_s = time.monotonic()
        self._may = True

    def look(self) -> None:
        """Raise the priority of stubs that were started since the last poll."""
        if not self._may or time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + LOOK_S
        for pid in self._loading() - self._raised:
            try:
                self._raise(pid)
            except PermissionError:
                self._may = False
                return
            except OSError:  # the process has ended
                continue

    def _loading(self) -> set[int]:
        if self._is_whole:
            return {self._server}
        stubs = (each.pid for each in descendants(self._server) if each.name.startswith("triton_python_b"))
        return set(stubs) - self._others

    def _raise(self, pid: int) -> None:
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid) - self._raise_by)
        self._raised.add(pid)
        if self._session_nice is None:
            with suppress(OSError):  # the kernel has no autogroups
                nice = self._session_file.read_text().strip()
                self._session_nice = int(found[1]) if (found := AUTOGROUP.search(nice)) else 0
                self._session_file.write_text(str(max(HIGHEST, self._session_nice - RAISE)))

    @property
    def _session_file(self) -> Path:
        return PROC / str(self._server) / "autogroup"

    def end(self) -> None:
        """Restore the priority of the raised processes and of the processes and threads that inherited it."""
        if self._session_nice is not None:
            with suppress(OSError):
                self._session_file.write_text(str(self._session_nice))
        pids = self._raised | {child.pid for pid in self._raised for child in descendants(pid)}
        seen, found = set[int](), threads_of(pids)
        while new := found - seen:
            for thread in new:
                with suppress(OSError):
                    nice = os.getpriority(os.PRIO_PROCESS, thread)
                    if nice < self._normal:  # skip threads started before the raise or lowered since
                        os.setpriority(os.PRIO_PROCESS, thread, nice + self._raise_by)
            seen |= new
            found = threads_of(pids)
        self._raised.clear()


def threads_of(pids: set[int]) -> set[int]:
    """Return the ids of all threads of these processes."""
    found = set[int]()
    for pid in pids:
        with suppress(*GONE):
            found |= {int(task.name) for task in (PROC / str(pid) / "task").iterdir()}
    return found
