"""How long the engine's steps take against the time that a frame lasts, and what follows for guidance.

A step makes one frame of every reply, so a step that takes longer than a frame lasts lets every listener run dry.
"""

import math
import time
from collections.abc import Callable

# What was changed must show in the average before the next change; a listener has heard 0.3 s by then, at 25 Hz.
SETTLE_STEPS = 8
# One half at a time comes back, and only when the average has seen more: taking it back costs a prefill.
RESTORE_STEPS = 16
# Over the latest steps, so that one long prompt does not look like overload.
AVERAGED_STEPS = 16
# The share of the frame period that a step may take, as foreseen, with one half more: room for arrivals and for noise.
RESTORE_BELOW = 0.85


class StepLoad:
    """Follows the average time of a step against `period_s`, which is infinite for a family without a frame rate."""

    def __init__(self, frame_rate: float, clock: Callable[[], float] = time.perf_counter):
        self.period_s = 1 / frame_rate if frame_rate > 0 else math.inf
        self.clock = clock
        self.step_s = 0.0
        self._num_steps = 0
        self._began_s: float | None = None

    def begin_step(self, is_counted: bool) -> None:
        """A step begins and the one before is over, unless that one had nothing to do (see `end_schedule`)."""
        now = self.clock()
        if is_counted and self._began_s is not None:
            self._num_steps += 1
            self.step_s += (now - self._began_s - self.step_s) / min(self._num_steps, AVERAGED_STEPS)
        self._began_s = now

    def end_schedule(self, num_rows: int) -> None:
        """What has been scheduled; after a step without rows the engine may sleep for any time."""
        if num_rows == 0:
            self._began_s = None

    def excess(self, num_rows: int) -> int:
        """How many halves to drop, or, below 0, to take back, when a step decodes `num_rows` rows."""
        if self.step_s > self.period_s and self._num_steps >= SETTLE_STEPS:
            # As if all of a step's time went with its rows: too few, then, and the rest at the next decision.
            return max(1, round(num_rows * (1 - self.period_s / self.step_s)))
        foreseen_s = self.step_s * (num_rows + 1) / max(1, num_rows)
        if foreseen_s < RESTORE_BELOW * self.period_s and self._num_steps >= RESTORE_STEPS:
            return -1
        return 0

    def start_over(self) -> None:
        """Something was changed: earlier steps say nothing of those to come."""
        self._num_steps, self.step_s = 0, 0.0
