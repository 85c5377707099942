"""Threads that wait for ever, told from those that wait for their turn.

Who looks only at answers cannot tell them apart on a busy machine. The kernel can: a thread that is kept from a
processor could run (R), one whose memory is read from a disk sleeps deeply (D), one held by a signal or a debugger is
stopped (T, t), and one that works, or waits for one that does, uses time or has somebody else awake. A thread hangs if
it has work and, look after look, has used no time at all while all of its process and of its children slept. Threads
that wake up for a moment now and then are found awake at few of the looks, one that others wait for at all of them.
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
LOOKS = 30  # in a row: no step of an engine and no batch of a decoder takes so long without a processor
MAX_AWAKE = 10  # of these
ASLEEP = frozenset("SIZX")  # idle threads of the kernel and what has ended, too
GONE = (FileNotFoundError, ProcessLookupError, PermissionError)

Thread = tuple[int, int]  # pid, tid


class HangWatch:
    """Looks after threads that have work while `has_work` says so. others: processes that these may wait for."""

    def __init__(
        self, has_work: Callable[[], bool], threads: Sequence[Thread], others: Sequence[int] = (), proc: Path = PROC
    ) -> None:
        self._has_work, self._threads, self._others, self._proc = has_work, tuple(threads), tuple(others), proc
        self._used: list[int] | None = None
        self._looks: deque[bool] = deque(maxlen=LOOKS)  # whether anybody was awake, since time was used
        self._stopped = threading.Event()

    def start(self, name: str) -> None:
        """Look every second, on a thread of its own, and end this process once the threads, called `name`, hang."""

        def run() -> None:
            while not self._stopped.wait(LOOK_S):
                if self.look():
                    stub.end(f"{name} hangs")

        stub.start_thread("hangs", run)

    def stop(self) -> None:
        """Look no more, and let go of what `has_work` belongs to."""
        self._stopped.set()
        self._has_work = lambda: False

    def look(self) -> bool:
        """Whether all the threads hang, as far as so many looks tell; False where /proc does not say."""
        used = self._times() if self._has_work() else None
        if used and used == self._used:
            self._looks.append(self._is_anybody_awake())
        else:
            self._looks.clear()
        self._used = used
        return len(self._looks) == LOOKS and sum(self._looks) <= MAX_AWAKE

    def _times(self) -> list[int] | None:
        """Nanoseconds of processor time that each thread has used."""
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
        """The processes of the threads, those that they have started, and the others."""
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
