"""Timeouts of the launcher on a loaded machine, and delays between restarts."""

import os
import time

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 30.0
HEALTHY_S = 60.0  # a server that was ready for this long resets the delay


def slowness() -> float:
    """Return the scale factor of timeouts on a loaded machine: the load average per core, at least 1."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class BackOff:
    """Exponential back-off between restarts.

    The restart after the first failure has no delay. Later delays double from FIRST_DELAY_S up to MAX_DELAY_S, and
    start over once a server has been ready for HEALTHY_S.
    """

    def __init__(self) -> None:
        self._num_failed = 0
        self._ready_since: float | None = None
        self._has_waited = False

    def note_waited(self) -> None:
        """Record that the delay for the current failure has passed; the next call to `next_delay_s` returns 0."""
        self._has_waited = True

    def note_ready(self) -> None:
        self._ready_since = time.monotonic()
        self._has_waited = False

    def next_delay_s(self) -> float:
        """Record a failure of the server or its start; return the delay before the next start."""
        if self._has_waited:
            self._has_waited = False
            return 0.0
        if self._ready_since is not None and time.monotonic() - self._ready_since >= HEALTHY_S:
            self._num_failed = 0
        self._ready_since = None
        self._num_failed += 1
        return 0.0 if self._num_failed == 1 else min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self._num_failed - 2, 16))
