"""What /proc says about the processes of a server."""

import os
import re
import select
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
END_S = 3.0  # what survives SIGKILL for so long waits for the kernel
MODEL_FILE = re.compile(r"/([^/]+)/\d+/model\.py ")
BLOCKED = re.compile(rb"^SigBlk:\t([0-9a-f]+)$", re.MULTILINE)
GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


@dataclass(frozen=True, slots=True)
class Process:
    """A process as it was when /proc was read."""

    pid: int
    parent: int
    group: int
    name: str
    command: str

    @property
    def is_worker(self) -> bool:
        """Whether the server cannot do without it: a stub, or a process of a vLLM engine."""
        return self.name.startswith("triton_python_b") or self.command.startswith("VLLM::")

    @property
    def model(self) -> str | None:
        """The model that a stub runs; None of any other process."""
        found = MODEL_FILE.search(self.command) if self.name.startswith("triton_python_b") else None
        return None if found is None else found[1]

    @property
    def is_tracker(self) -> bool:
        """Whether it is a resource tracker of multiprocessing: it unlinks the semaphores of those that have died."""
        return "multiprocessing.resource_tracker" in self.command

    @property
    def is_nameless(self) -> bool:
        """Whether it is in the middle of its exec, or of its end, and nobody can tell what it is."""
        return not self.command


def birth(pid: int) -> int | None:
    """When the process was started, in ticks since the machine was: with the pid, what tells it from all others."""
    with suppress(*GONE):
        return int(_stat(pid)[1][19])
    return None


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped the process: it lives, and does nothing. A debugger does so otherwise."""
    with suppress(*GONE):
        return _stat(pid)[1][0] == "T"
    return False


def read_process(pid: int) -> Process | None:
    """The process with this pid; None for one that has ended, reaped or not."""
    try:
        name, fields = _stat(pid)
        command = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except GONE:
        return None
    return None if fields[0] in "ZX" else Process(pid, int(fields[1]), int(fields[2]), name, command)


def _stat(pid: int) -> tuple[str, list[str]]:
    head, _, tail = (PROC / str(pid) / "stat").read_text().rpartition(")")
    return head.partition("(")[2], tail.split()


def all_processes() -> list[Process]:
    """Every process that can be seen."""
    found = (read_process(int(path.name)) for path in PROC.iterdir() if path.name.isdigit())
    return [process for process in found if process is not None]


def descendants(pid: int) -> list[Process]:
    """Children of `pid`, and theirs."""
    children: dict[int, list[Process]] = {}
    for process in all_processes():
        children.setdefault(process.parent, []).append(process)
    found, queue = [], [pid]
    while queue:
        for child in children.get(queue.pop(), []):
            found.append(child)
            queue.append(child.pid)
    return found


def waits_for_a_child(pid: int) -> bool:
    """Whether a thread of the process is asleep until one of its children has ended; False where /proc does not say."""
    with suppress(*GONE):
        return any((task / "wchan").read_text() == "do_wait" for task in (PROC / str(pid) / "task").iterdir())
    return False


def blocks_by_thread(pid: int, signals: Collection[int]) -> dict[int, bool]:
    """The threads of the process, and whether they have any of these signals blocked."""
    mask, found = sum(1 << number - 1 for number in signals), dict[int, bool]()
    with suppress(*GONE):
        for task in (PROC / str(pid) / "task").iterdir():
            with suppress(*GONE):
                blocked = BLOCKED.search((task / "status").read_bytes())
                if blocked is not None:
                    found[int(task.name)] = bool(int(blocked[1], 16) & mask)
    return found


def lost_children(pid: int) -> set[int]:
    """The children of the process that have ended without the process having noticed."""
    found = set()
    for path in PROC.iterdir():
        if path.name.isdigit():
            with suppress(*GONE):
                if _stat(int(path.name))[1][:2] == ["Z", str(pid)]:
                    found.add(int(path.name))
    return found


def environment_of(pid: int, variable: str) -> str | None:
    """The value that `variable` had when the process started; None also for another user's process."""
    with suppress(*GONE):
        for entry in (PROC / str(pid) / "environ").read_bytes().split(b"\0"):
            name, _, value = entry.partition(b"=")
            if name == variable.encode():
                return value.decode(errors="replace")
    return None


def end_all(is_meant: Callable[[Process], bool], patience_s: float = 3.0) -> None:
    """SIGKILL every process that is meant, and wait until none is left.

    Trackers get `patience_s` to end by themselves, as they do when those are gone whose leftovers they remove; so do
    the nameless, who may become trackers.
    """
    begun = time.monotonic()
    while left := [process for process in all_processes() if is_meant(process)]:
        waited_s = time.monotonic() - begun
        for process in left:
            if not (process.is_tracker or process.is_nameless) or waited_s > patience_s:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(process.pid, signal.SIGKILL)
        if waited_s > 2 * patience_s:
            return  # what survives SIGKILL waits for the kernel
        time.sleep(0.02)


class Watch:
    """Notices at once when one of several processes ends, also one that its parent has not reaped."""

    def __init__(self, processes: list[Process]) -> None:
        self._watched: dict[int, Process] = {}
        self.ended: list[Process] = []
        for process in processes:
            try:
                self._watched[os.pidfd_open(process.pid)] = process
            except ProcessLookupError:
                self.ended.append(process)

    def wait(self, timeout_s: float) -> list[Process]:
        """The processes that have ended, after at most `timeout_s`; returns early with the first of them."""
        if not self.ended:
            poll = select.poll()
            for descriptor in self._watched:
                poll.register(descriptor, select.POLLIN)
            self.ended += [self._watched[descriptor] for descriptor, _ in poll.poll(timeout_s * 1000)]
        return self.ended

    def stopped(self) -> list[Process]:
        """The processes that live and are stopped."""
        return [process for process in self._watched.values() if is_stopped(process.pid)]

    def stubs_of(self, model: str) -> list[Process]:
        """Those that are the model's stubs."""
        return [process for process in self._watched.values() if process.model == model]

    def models_of(self, processes: list[Process]) -> set[str] | None:
        """The models whose stubs these are, or have made these; None where one is of no model."""
        by_pid = {process.pid: process for process in self._watched.values()}
        found = set()
        for process in processes:
            while process.model is None:
                if process.parent not in by_pid:
                    return None
                process = by_pid[process.parent]
            found.add(process.model)
        return found

    def end_models(self, models: set[str]) -> None:
        """End what runs these models, all of it, and wait until it has ended."""
        doomed = [each for each, process in self._watched.items() if (self.models_of([process]) or {""}) <= models]
        for descriptor in doomed:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        for descriptor in doomed:
            select.select([descriptor], [], [], END_S)

    def close(self) -> None:
        """Let go of the processes."""
        for descriptor in self._watched:
            os.close(descriptor)
        self._watched.clear()
