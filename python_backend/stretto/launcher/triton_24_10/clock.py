"""Detection of steps of the wall clock, which stop the timers of Triton's gRPC."""

import time

from stretto.launcher.faults import Fault

MAX_BACK_S = 60.0  # a shorter hang is over sooner than a restart would be


class ClockWatch:
    """Detects when the wall clock is set back.

    Triton's gRPC timers can then hang until the clock has caught up. Requests in flight receive all of their responses,
    but later ones may not end.
    """

    def __init__(self) -> None:
        self._ahead_s = _ahead_s()

    def fault(self) -> Fault | None:
        """Poll; return a fault if the clock was set back by more than MAX_BACK_S since the last poll, else None."""
        before_s = self._ahead_s
        self._ahead_s = _ahead_s()
        back_s = before_s - self._ahead_s
        if back_s <= MAX_BACK_S:
            return None
        return Fault([], f"the clock was set back by {back_s:.0f} s", spares_requests=True)


def _ahead_s() -> float:
    """Return wall-clock time minus monotonic time, in seconds; only steps of the clock change it."""
    return time.time() - time.monotonic()  # corrections of the clock rate affect both
