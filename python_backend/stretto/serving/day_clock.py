"""Steps back of the clock of the day, which Triton's timers do not survive.

gRPC's timers are of the monotonic clock, but the Abseil that Triton 24.10 is linked with (20230125) waits for them
until a moment of the day: by a futex with FUTEX_CLOCK_REALTIME. A wait that begins before the clock is set back by an
hour so ends an hour late. Later timers wake nobody, since they are due after that one; without them no stream's end
is sent. A step forward ends such a wait early, which does no harm.
"""

import time

from stretto.serving.trouble import Trouble

MAX_BACK_S = 60.0  # a shorter hang is over sooner than the restart that would end it


class DayClock:
    """Tells when the clock of the day is set back."""

    def __init__(self) -> None:
        self._ahead_s = _ahead_s()

    def trouble(self) -> Trouble | None:
        """That it was set back by too much since the last look."""
        before_s, self._ahead_s = self._ahead_s, _ahead_s()
        back_s = before_s - self._ahead_s
        return Trouble([], f"the clock was set back by {back_s:.0f} s") if back_s > MAX_BACK_S else None


def _ahead_s() -> float:
    """How far it is ahead of the monotonic clock, which the same corrections of its speed reach but no step."""
    return time.time() - time.monotonic()
