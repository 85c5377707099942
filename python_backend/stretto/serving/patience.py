"""How long to wait: for a start on a machine that may be busy, and before the next one when starts fail."""

import os
import time

FIRST_DELAY_S, MAX_DELAY_S = 0.5, 30.0
HEALTHY_S = 60.0  # a server that was ready for so long was well


def slowness() -> float:
    """How much longer things take here now than on an idle machine, by the number of processes that want a core."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class BackOff:
    """The delays between starts: none before the first, then ever longer ones up to a limit, until one was well."""

    def __init__(self) -> None:
        self._num_failed = 0
        self._ready_since: float | None = None
        self._has_waited = False

    def note_waited(self) -> None:
        """What fails next is what failed last, whose delay is over."""
        self._has_waited = True

    def note_ready(self) -> None:
        """The server is ready."""
        self._ready_since = time.monotonic()
        self._has_waited = False

    def next_delay_s(self) -> float:
        """The server, or its start, has failed: how long to wait before the next."""
        if self._has_waited:
            self._has_waited = False
            return 0.0
        if self._ready_since is not None and time.monotonic() - self._ready_since >= HEALTHY_S:
            self._num_failed = 0
        self._ready_since = None
        self._num_failed += 1
        return 0.0 if self._num_failed == 1 else min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self._num_failed - 2, 16))
