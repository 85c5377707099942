"""Detection of a server that has crashed but does not exit."""

import signal
import time

from stretto.launcher.faults import Fault
from stretto.launcher.processes import blocks_by_thread

FATAL = frozenset({signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL})
CHECK_INTERVAL_S = 2.0  # each poll reads one file per thread, 130 in all


class CrashWatch:
    """Detects when the server has crashed but does not exit, because its signal handler hangs.

    A thread inside the handler has the signal blocked. Threads that have blocked it since they started, as GPU driver
    threads may, are ignored.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._checked_s = time.monotonic()
        self._were_free = set[int]()
        self._seen = set[int]()

    def fault(self) -> Fault | None:
        """Poll; return a fault if a thread was in the handler at two successive polls, else None."""
        now_s = time.monotonic()
        if now_s - self._checked_s < CHECK_INTERVAL_S:
            return None
        threads = blocks_by_thread(self._pid, FATAL)
        before = self._seen
        self._were_free = {thread for thread, blocks in threads.items() if not blocks or thread in self._were_free}
        self._seen = {thread for thread in self._were_free if threads[thread]}
        self._checked_s = now_s
        return Fault([], "tritonserver has crashed but does not exit") if before & self._seen else None
