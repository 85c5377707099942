"""A server that has crashed and does not end.

Triton's handler of a fatal signal writes down where that was, and takes memory for it. Where the crash has left the
heap locked it waits for that for ever, as does whoever else takes memory: the process lives, and answers nobody.
"""

import signal
import time

from stretto.serving.processes import threads_that_block
from stretto.serving.trouble import Trouble

FATAL = frozenset({signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL})
LOOK_S = 2.0  # a look reads a file for each of 130 threads


class CrashWatch:
    """Looks for threads that are in such a handler: there, and nowhere else, Triton's have the signal blocked."""

    def __init__(self, pid: int) -> None:
        self._pid, self._looked_s = pid, time.monotonic()
        self._seen = set[int]()

    def trouble(self) -> Trouble | None:
        """That a thread was in one at this look and at the last one."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return None
        before, self._seen, self._looked_s = self._seen, threads_that_block(self._pid, FATAL), now_s
        return Trouble([], "tritonserver has crashed and does not end") if before & self._seen else None
