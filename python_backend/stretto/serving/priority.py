"""Higher priority for models that are loaded again, where this user may give it."""

import os
import re
import time
from contextlib import suppress
from pathlib import Path

from stretto.serving.processes import GONE, PROC, descendants

RAISE = 10  # of nice: nine times the processor time of a process at its default
LOOK_S = 0.5
AUTOGROUP = re.compile(r" nice (-?\d+)$")


class Hurry:
    """The processes of a server that load models now, with raised priority until `end`.

    Raised are the processes and their session, which Linux weighs as one if autogroups are on (sched(7)). Without
    CAP_SYS_NICE, or a limit on nice that allows it, nothing changes.
    """

    def __init__(self, server_pid: int, is_whole: bool = False) -> None:
        """server_pid: of the server; the stubs that it has already keep their priority.

        is_whole: the server has just been started, and is raised itself, before it starts stubs, which inherit that.
        """
        self._server, self._is_whole = server_pid, is_whole
        self._others = {process.pid for process in descendants(server_pid)}
        self._raised = set[int]()
        self._session_nice: int | None = None
        self._next_s = time.monotonic()
        self._may = True

    def look(self) -> None:
        """Raise the stubs that have been started since the last look."""
        if not self._may or time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + LOOK_S
        for pid in self._loading() - self._raised:
            try:
                self._raise(pid)
            except PermissionError:
                self._may = False
                return
            except OSError:  # it has ended
                continue

    def _loading(self) -> set[int]:
        if self._is_whole:
            return {self._server}
        stubs = (each.pid for each in descendants(self._server) if each.name.startswith("triton_python_b"))
        return set(stubs) - self._others

    def _raise(self, pid: int) -> None:
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid) - RAISE)
        self._raised.add(pid)
        if self._session_nice is None:
            with suppress(OSError):  # this kernel has no autogroups
                nice = self._session_file.read_text().strip()
                self._session_nice = int(found[1]) if (found := AUTOGROUP.search(nice)) else 0
                self._session_file.write_text(str(max(-20, self._session_nice - RAISE)))

    @property
    def _session_file(self) -> Path:
        return PROC / str(self._server) / "autogroup"

    def end(self) -> None:
        """Lower again what was raised, and what has inherited it: processes and threads."""
        if self._session_nice is not None:
            with suppress(OSError):
                self._session_file.write_text(str(self._session_nice))
        pids = self._raised | {child.pid for pid in self._raised for child in descendants(pid)}
        normal = os.getpriority(os.PRIO_PROCESS, 0)
        seen, found = set[int](), threads_of(pids)
        while new := found - seen:
            for thread in new:
                with suppress(OSError):
                    nice = os.getpriority(os.PRIO_PROCESS, thread)
                    if nice < normal:  # others were begun before the raise, or have lowered themselves
                        os.setpriority(os.PRIO_PROCESS, thread, nice + RAISE)
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
