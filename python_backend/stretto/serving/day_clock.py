"""Detection of backward wall-clock steps, which Triton's timers do not survive.

WORKAROUND(triton 24.10): gRPC's timers use the monotonic clock, but the Abseil that Triton is linked with (20230125)
waits for them until a wall-clock time (a futex with FUTEX_CLOCK_REALTIME). If the clock is set back by an hour, a wait
in progress ends an hour late. Later timers wake no thread, because they are due after the pending one, and without
timers no stream's end is sent. A forward step ends a wait early, which is harmless.
"""

import time

from stretto.serving.trouble import Trouble

MAX_BACK_S = 60.0  # a shorter hang ends sooner than a restart would take


class DayClock:
    """Detector of backward steps of the wall clock."""

    def __init__(self) -> None:
        self._ahead_s = _ahead_s()

    def trouble(self) -> Trouble | None:
        """Return a fault if the clock was set back by more than MAX_BACK_S since the last poll; None otherwise."""
        before_s, self._ahead_s = self._ahead_s, _ahead_s()
        back_s = before_s - self._ahead_s
        return Trouble([], f"the clock was set back by {back_s:.0f} s") if back_s > MAX_BACK_S else None


def _ahead_s() -> float:
    """Return wall-clock time minus monotonic time, in seconds.

    Corrections of the clock rate affect both clocks equally; steps affect only the wall clock.
    """
    return time.time() - time.monotonic()
