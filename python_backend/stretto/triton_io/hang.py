"""Watchdog that distinguishes deadlocked threads from threads waiting for a processor.

On a busy machine answers alone cannot distinguish them, but the kernel can. A thread waiting for a processor is
runnable (R), one waiting for a disk is in deep sleep (D), one held by a signal or debugger is stopped (T, t), and a
working thread, or one waiting for it, uses time or keeps another awake. A thread is deadlocked if it has work and, in
many consecutive polls, has used no time while its whole process and child processes slept. Threads that wake briefly
now and then are seen awake in few polls, threads that others wait for in all.
(`/proc/<pid>/task/<tid>/stat`, field 3; `schedstat`, field 1; proc_pid_stat(5), Documentation/scheduler/sched-stats.)
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from stretto.triton_io import stub

PROC = Path("/proc")
LOOK_S = 1.0
LOOKS = 30  # consecutive polls, more than any step or batch goes without a processor
MAX_AWAKE = 10  # polls among them in which another thread may be awake
ASLEEP = frozenset("SIZX")  # includes idle kernel threads and ended processes
GONE = (FileNotFoundError, ProcessLookupError, PermissionError)

Thread = tuple[int, int]  # pid, tid


class HangWatch:
    """Watchdog of threads while `has_work` returns True; `others` are processes that they may wait for."""

    def __init__(
        self, has_work: Callable[[], bool], threads: Sequence[Thread], others: Sequence[int] = (), proc: Path = PROC
    ) -> None:
        self._has_work, self._threads, self._others, self._proc = has_work, tuple(threads), tuple(others), proc
        self._used: list[int] | None = None
        # whether any thread was awake, per poll since time was last used
        self._looks: deque[bool] = deque(maxlen=LOOKS)
        self._stopped = threading.Event()

    def start(self, name: str) -> None:
        """Poll every second on a thread of its own, and end this process once the threads, called `name`, hang."""

        def run() -> None:
            while not self._stopped.wait(LOOK_S):
                if self.look():
                    stub.end(f"{name} hangs")

        stub.start_thread("hangs", run)

    def stop(self) -> None:
        """Stop polling and drop the reference to `has_work`."""
        self._stopped.set()
        self._has_work = lambda: False

    def look(self) -> bool:
        """Poll once; return True if all the threads hang. False if /proc is unreadable."""
        used = self._times() if self._has_work() else None
        if used and used == self._used:
            self._looks.append(self._is_anybody_awake())
        else:
            self._looks.clear()
        self._used = used
        return len(self._looks) == LOOKS and sum(self._looks) <= MAX_AWAKE

    def _times(self) -> list[int] | None:
        """Return the processor time used by each thread, in nanoseconds."""
        try:
            files = [self._proc / str(pid) / "task" / str(tid) / "schedstat" for pid, tid in self._threads]
            return [int(file.read_text().split()[0]) for file in files]
        except GONE:
            return None

    def _is_anybody_awake(self) -> bool:
        me = str(threading.get_native_id())
        return any(
            _state(task) not in ASLEEP
            for pid in self._processes()
            for task in _entries(self._proc / str(pid) / "task")
            if task.name != me
        )

    def _processes(self) -> Iterator[int]:
        """Yield the processes of the threads, their children, and the others."""
        yield from self._others
        queue = list({pid for pid, _ in self._threads})
        while queue:
            pid = queue.pop()
            yield pid
            for task in _entries(self._proc / str(pid) / "task"):
                with suppress(*GONE):
                    queue += map(int, (task / "children").read_text().split())


def _entries(folder: Path) -> Iterable[Path]:
    with suppress(*GONE):
        return list(folder.iterdir())
    return ()


def _state(task: Path) -> str:
    with suppress(*GONE):
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    return "X"
