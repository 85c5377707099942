"""A server that has crashed and does not end.

Triton's handler of a fatal signal writes down where that was, and takes memory for it. Where the crash has left the
heap locked it waits for that for ever, as does whoever else takes memory: the process lives, and answers nobody.
"""

import signal
import time

from stretto.serving.processes import blocks_by_thread
from stretto.serving.trouble import Trouble

FATAL = frozenset({signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL})
LOOK_S = 2.0  # a look reads a file for each of 130 threads


class CrashWatch:
    """Looks for threads that are in such a handler, where the signal is blocked.

    Threads of others' libraries, as of a GPU's driver, may have all signals blocked from their beginning.
    """

    def __init__(self, pid: int) -> None:
        self._pid, self._looked_s = pid, time.monotonic()
        self._were_free, self._seen = set[int](), set[int]()

    def trouble(self) -> Trouble | None:
        """That a thread which once was not in one is there at this look and was at the last one."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return None
        threads, before = blocks_by_thread(self._pid, FATAL), self._seen
        self._were_free = {each for each, blocks in threads.items() if not blocks or each in self._were_free}
        self._seen = {each for each in self._were_free if threads[each]}
        self._looked_s = now_s
        return Trouble([], "tritonserver has crashed and does not end") if before & self._seen else None
