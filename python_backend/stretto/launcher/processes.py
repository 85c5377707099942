"""Finding, watching, prioritising and killing processes and threads through /proc."""

import os
import re
import select
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stretto.machine.worker_process import HOST_NAME

PROC = Path("/proc")
END_S = 3.0  # a process that survives SIGKILL for this long is blocked in the kernel
MODEL_FILE = re.compile(r"/([^/]+)/\d+/model\.py ")
BLOCKED = re.compile(rb"^SigBlk:\t([0-9a-f]+)$", re.MULTILINE)
GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


@dataclass(frozen=True, slots=True)
class ProcessSnapshot:
    """Snapshot of a process.

    Attributes:
        parent: Pid of the parent; for an engine host, the pid of the stub for which it was started.
        name: Name of the executable, at most 15 characters.
        command: Command line, each argument followed by a space.
    """

    pid: int
    parent: int
    group: int
    name: str
    command: str

    @property
    def is_worker(self) -> bool:
        """True if the server cannot work without this process: a stub, an engine host or a vLLM engine process."""
        is_host = self.name.startswith(HOST_NAME)
        return is_host or self.name.startswith("triton_python_b") or self.command.startswith("VLLM::")

    @property
    def model(self) -> str | None:
        """Name of the model that this stub runs; None for other processes."""
        match = MODEL_FILE.search(self.command) if self.name.startswith("triton_python_b") else None
        return None if match is None else match[1]

    @property
    def is_tracker(self) -> bool:
        """True for a resource tracker of Python's multiprocessing, which unlinks semaphores of dead processes."""
        return "multiprocessing.resource_tracker" in self.command

    @property
    def is_nameless(self) -> bool:
        """True if the command line is empty, as it is during exec and exit."""
        return not self.command


def birth(pid: int) -> int | None:
    """Return the start time of a process in clock ticks after boot, or None if there is no such process.

    Pid and start time together identify a process uniquely.
    """
    with suppress(*GONE):
        return int(_stat(pid)[1][19])
    return None


def is_stopped(pid: int) -> bool:
    """Return True if a signal, not a debugger, has stopped the process."""
    with suppress(*GONE):
        return _stat(pid)[1][0] == "T"
    return False


def read_process(pid: int) -> ProcessSnapshot | None:
    """Return a snapshot of the process, or None if it has ended, even if its parent has not reaped it."""
    try:
        name, fields = _stat(pid)
        command = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        owner = name.removeprefix(HOST_NAME)
        # other users' processes may also have such a name
        is_host = owner != name and owner.isdigit() and (PROC / str(pid)).stat().st_uid == os.geteuid()
    except GONE:
        return None
    parent = int(owner if is_host else fields[1])
    return None if fields[0] in "ZX" else ProcessSnapshot(pid, parent, int(fields[2]), name, command)


def _stat(pid: int) -> tuple[str, list[str]]:
    head, _, tail = (PROC / str(pid) / "stat").read_text().rpartition(")")
    return head.partition("(")[2], tail.split()


def all_processes() -> list[ProcessSnapshot]:
    """Return snapshots of all visible processes."""
    snapshots = (read_process(int(path.name)) for path in PROC.iterdir() if path.name.isdigit())
    return [process for process in snapshots if process is not None]


def descendants(pid: int) -> list[ProcessSnapshot]:
    """Return the children of a process, and all of their descendants."""
    children: dict[int, list[ProcessSnapshot]] = {}
    for process in all_processes():
        children.setdefault(process.parent, []).append(process)
    below = []
    queue = [pid]
    while queue:
        for child in children.get(queue.pop(), []):
            below.append(child)
            queue.append(child.pid)
    return below


def waits_for_a_child(pid: int) -> bool:
    """Return True if /proc shows that a thread of the process is waiting for a child to exit."""
    with suppress(*GONE):
        return any((task / "wchan").read_text() == "do_wait" for task in (PROC / str(pid) / "task").iterdir())
    return False


def blocks_by_thread(pid: int, signals: Collection[int]) -> dict[int, bool]:
    """Return, for each thread id of the process, whether that thread blocks any of these signals."""
    mask = sum(1 << number - 1 for number in signals)
    blocks = dict[int, bool]()
    with suppress(*GONE):
        for task in (PROC / str(pid) / "task").iterdir():
            with suppress(*GONE):
                blocked = BLOCKED.search((task / "status").read_bytes())
                if blocked is not None:
                    blocks[int(task.name)] = bool(int(blocked[1], 16) & mask)
    return blocks


def lost_children(pid: int) -> set[int]:
    """Return the pids of children of the process that have exited but have not been reaped."""
    lost = set()
    for path in PROC.iterdir():
        if path.name.isdigit():
            with suppress(*GONE):
                if _stat(int(path.name))[1][:2] == ["Z", str(pid)]:
                    lost.add(int(path.name))
    return lost


def environment_of(pid: int, variable: str) -> str | None:
    """Return the value that an environment variable had when a process started.

    The result is None if it was not set, or if the process has exited or belongs to another user.
    """
    with suppress(*GONE):
        for entry in (PROC / str(pid) / "environ").read_bytes().split(b"\0"):
            name, _, value = entry.partition(b"=")
            if name == variable.encode():
                return value.decode(errors="replace")
    return None


TRACKERS_S = 3.0  # time for resource trackers to exit by themselves


def end_all(is_meant: Callable[[ProcessSnapshot], bool]) -> None:
    """Kill the selected processes and wait until they have ended, for at most twice TRACKERS_S.

    Resource trackers exit by themselves after the processes whose resources they track, so they are killed only after
    TRACKERS_S. The same applies to processes without a command line, which may be about to become trackers.
    """
    begun = time.monotonic()
    while left := [process for process in all_processes() if is_meant(process)]:
        waited_s = time.monotonic() - begun
        for process in left:
            if not (process.is_tracker or process.is_nameless) or waited_s > TRACKERS_S:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(process.pid, signal.SIGKILL)
        if waited_s > 2 * TRACKERS_S:
            return  # survivors of SIGKILL are blocked in the kernel
        time.sleep(0.02)


class Watch:
    """Watches several processes, and detects immediately when one exits, even if it is not reaped."""

    def __init__(self, processes: list[ProcessSnapshot]) -> None:
        self._watched: dict[int, ProcessSnapshot] = {}
        self.ended: list[ProcessSnapshot] = []
        for process in processes:
            try:
                self._watched[os.pidfd_open(process.pid)] = process
            except ProcessLookupError:
                self.ended.append(process)

    def wait(self, timeout_s: float) -> list[ProcessSnapshot]:
        """Wait up to `timeout_s` until a process ends; return all that have ended."""
        if not self.ended:
            poll = select.poll()
            for descriptor in self._watched:
                poll.register(descriptor, select.POLLIN)
            self.ended += [self._watched[descriptor] for descriptor, _ in poll.poll(timeout_s * 1000)]
        return self.ended

    def stopped(self) -> list[ProcessSnapshot]:
        """Return the processes that a signal has stopped."""
        return [process for process in self._watched.values() if is_stopped(process.pid)]

    def stubs_of(self, model: str) -> list[ProcessSnapshot]:
        return [process for process in self._watched.values() if process.model == model]

    def models_of(self, processes: list[ProcessSnapshot]) -> set[str] | None:
        """Return the models whose stubs own these processes; None if a process belongs to no stub."""
        by_pid = {process.pid: process for process in self._watched.values()}
        models = set()
        for process in processes:
            while process.model is None:
                if process.parent not in by_pid:
                    return None
                process = by_pid[process.parent]
            models.add(process.model)
        return models

    def end_models(self, models: set[str]) -> None:
        """Kill all processes of these models, and wait up to END_S for each of them to exit."""
        doomed = [
            descriptor for descriptor, process in self._watched.items() if (self.models_of([process]) or {""}) <= models
        ]
        for descriptor in doomed:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        for descriptor in doomed:
            select.select([descriptor], [], [], END_S)

    def close(self) -> None:
        for descriptor in self._watched:
            os.close(descriptor)
        self._watched.clear()


RAISE = 15  # nice levels: 28 times the CPU share of a default process
GENTLE_RAISE = 5  # three times the share
HIGHEST = -20  # the kernel's smallest nice level
CHECK_INTERVAL_S = 0.5
AUTOGROUP = re.compile(r" nice (-?\d+)$")


class LoadPriority:
    """Raised CPU priority for server processes that are loading models, until `end` restores it.

    The priority of both the processes and their sessions is raised, because with autogroups Linux schedules a session
    as one unit (sched(7)). Nothing changes if this process may not raise priorities, which requires CAP_SYS_NICE or a
    permissive nice limit.
    """

    def __init__(self, server_pid: int, is_new_server: bool = False, raise_by: int = RAISE) -> None:
        """Find the stubs that are already running; their priority stays unchanged.

        Args:
            is_new_server: True if the server has just been started. Its own priority is then also raised, and its stubs
                inherit it.
        """
        self._server = server_pid
        self._is_new_server = is_new_server
        self._others = {process.pid for process in descendants(server_pid)}
        self._raised = set[int]()
        self._normal = os.getpriority(os.PRIO_PROCESS, 0)
        self._raise_by = min(raise_by, self._normal - HIGHEST)  # the kernel would clamp a larger raise
        self._session_nice = dict[int, int]()  # by session id, which is the pid of its first process
        self._next_s = time.monotonic()
        self._may = True

    def poll(self) -> None:
        """Raise the priority of stubs and engine hosts that were started since the last poll."""
        if not self._may or time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + CHECK_INTERVAL_S
        for pid in self._loading() - self._raised:
            try:
                self._raise(pid)
            except PermissionError:
                self._may = False
                return
            except OSError:  # the process has ended
                continue

    def _loading(self) -> set[int]:
        named = ("triton_python_b", HOST_NAME)
        loading = {descendant.pid for descendant in descendants(self._server) if descendant.name.startswith(named)}
        normal = {pid for pid in loading if self._is_normal(pid)}  # the others have inherited the raise
        return normal | {self._server} if self._is_new_server else normal - self._others

    def _is_normal(self, pid: int) -> bool:
        with suppress(OSError):
            return os.getpriority(os.PRIO_PROCESS, pid) >= self._normal
        return False

    def _raise(self, pid: int) -> None:
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid) - self._raise_by)
        self._raised.add(pid)
        session = os.getsid(pid)
        if session not in self._session_nice:
            with suppress(OSError):  # the kernel has no autogroups
                nice = self._session_file(session).read_text().strip()
                self._session_nice[session] = int(match[1]) if (match := AUTOGROUP.search(nice)) else 0
                self._session_file(session).write_text(str(max(HIGHEST, self._session_nice[session] - self._raise_by)))

    @staticmethod
    def _session_file(session: int) -> Path:
        return PROC / str(session) / "autogroup"

    def end(self) -> None:
        """Restore the priority of the raised processes, and of the processes and threads that inherited it."""
        for session, nice in self._session_nice.items():
            with suppress(OSError):
                self._session_file(session).write_text(str(nice))
        pids = self._raised | {child.pid for pid in self._raised for child in descendants(pid)}
        seen = set[int]()
        threads = threads_of(pids)
        while new := threads - seen:
            for thread in new:
                with suppress(OSError):
                    nice = os.getpriority(os.PRIO_PROCESS, thread)
                    if nice < self._normal:  # skip threads started before the raise or lowered since
                        os.setpriority(os.PRIO_PROCESS, thread, nice + self._raise_by)
            seen |= new
            threads = threads_of(pids)
        self._raised.clear()


def threads_of(pids: set[int]) -> set[int]:
    """Return the ids of all threads of these processes."""
    threads = set[int]()
    for pid in pids:
        with suppress(*GONE):
            threads |= {int(task.name) for task in (PROC / str(pid) / "task").iterdir()}
    return threads
