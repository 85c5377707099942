"""Detection of a tritonserver process that has crashed but does not exit.

WORKAROUND(triton): its fatal-signal handler writes a stack trace, for which it allocates memory. If the crash happened
with the heap lock held, the handler deadlocks, as does every other thread that allocates. The process stays alive but
answers no requests.
"""

import signal
import time

from stretto.serving.processes import blocks_by_thread
from stretto.serving.trouble import Trouble

FATAL = frozenset({signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL})
LOOK_S = 2.0  # each poll reads one file per thread, 130 in all


class CrashWatch:
    """Watcher for threads that execute a fatal-signal handler.

    A thread in the handler has the signal blocked. Threads of third-party libraries, for example GPU drivers, may have
    all signals blocked from their start; they are ignored.
    """

    def __init__(self, pid: int) -> None:
        self._pid, self._looked_s = pid, time.monotonic()
        self._were_free, self._seen = set[int](), set[int]()

    def trouble(self) -> Trouble | None:
        """Return a crash if a thread was in the handler at two successive polls; None otherwise."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return None
        threads, before = blocks_by_thread(self._pid, FATAL), self._seen
        self._were_free = {each for each, blocks in threads.items() if not blocks or each in self._were_free}
        self._seen = {each for each in self._were_free if threads[each]}
        self._looked_s = now_s
        return Trouble([], "tritonserver has crashed and does not end") if before & self._seen else None
