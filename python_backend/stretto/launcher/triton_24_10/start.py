"""Detection of a start that hangs because the server and a stub wait for each other (stub_launcher.cc)."""

import time

from stretto.launcher.processes import lost_children, waits_for_a_child
from stretto.launcher.timeouts import slowness

STUCK_S = 20.0  # twice the time that a stub may take to exit on request
POLL_S = 1.0  # a poll reads files of every process of the machine, which takes milliseconds


class StartWatch:
    """Detects when the models of a server will never be loaded.

    Args:
        may_wait: True if the server may wait for a stub to end, without having asked it to.
        may_miss: True if the server may wait for the first message of a stub that has died.
    """

    def __init__(self, pid: int, may_wait: bool = True, may_miss: bool = True) -> None:
        self._pid = pid
        self._may_wait = may_wait
        self._may_miss = may_miss
        self._long_lost = lost_children(pid)  # children of earlier models, which Triton reaps late, if at all
        self._stuck_since: float | None = None
        self._next_s = time.monotonic()

    def hang(self) -> str:
        """Return how the start hangs, as words after "the server has", once it has hung for STUCK_S; otherwise ''.

        A call within POLL_S of the last poll also returns ''.
        """
        now_s = time.monotonic()
        if now_s < self._next_s:
            return ""
        self._next_s = now_s + POLL_S
        if self._may_wait and waits_for_a_child(self._pid):
            hang = "waited for a stub to end"
        elif self._may_miss and lost_children(self._pid) - self._long_lost:
            hang = "not noticed the end of a stub"
        else:
            self._stuck_since = None
            return ""
        self._stuck_since = self._stuck_since or now_s
        return f"{hang} for {STUCK_S:g} s" if now_s - self._stuck_since > STUCK_S * slowness() else ""
