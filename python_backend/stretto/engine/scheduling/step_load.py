"""Measured step time relative to the frame period, and the resulting number of guided replies.

A step generates one row of every reply. A step longer than a row's audio therefore makes every client underrun.
"""

import math
import time
from collections.abc import Callable

# Steps to average after a change before the next one: 0.3 s of audio at 25 Hz.
SETTLE_STEPS = 8
# Steps to average before an unconditional request is re-created, one at a time: each costs a prefill.
RESTORE_STEPS = 16
# Window of the average, long enough that one long prompt does not look like overload.
AVERAGED_STEPS = 16
# Largest predicted step time, relative to the frame period, with one more request; the rest is for arrivals and noise.
RESTORE_BELOW = 0.85


class StepLoad:
    """Moving average of the step time; `period_s` is infinite for a family without a frame rate."""

    def __init__(self, row_rate: float, clock: Callable[[], float] = time.perf_counter):
        self.period_s = 1 / row_rate if row_rate > 0 else math.inf
        self.clock = clock
        self.step_s = 0.0
        self._num_steps = 0
        self._began_s: float | None = None

    def begin_step(self, is_counted: bool) -> None:
        """Record the start of a step, which ends the previous one unless that was empty (see `end_schedule`)."""
        now = self.clock()
        if is_counted and self._began_s is not None:
            self._num_steps += 1
            self.step_s += (now - self._began_s - self.step_s) / min(self._num_steps, AVERAGED_STEPS)
        self._began_s = now

    def end_schedule(self, num_rows: int) -> None:
        """Record that a step of `num_rows` rows was scheduled; after an empty one the engine may sleep."""
        if num_rows == 0:
            self._began_s = None

    def excess(self, num_rows: int) -> int:
        """Return how many unconditional requests to remove (or, if negative, re-create) at `num_rows` decoding rows."""
        if self.step_s > self.period_s and self._num_steps >= SETTLE_STEPS:
            # Assumes step time proportional to rows, which removes too few; the next decision removes the rest.
            return max(1, round(num_rows * (1 - self.period_s / self.step_s)))
        foreseen_s = self.step_s * (num_rows + 1) / max(1, num_rows)
        if foreseen_s < RESTORE_BELOW * self.period_s and self._num_steps >= RESTORE_STEPS:
            return -1
        return 0

    def start_over(self) -> None:
        """Discard the average after a change, because earlier steps do not predict later ones."""
        self._num_steps, self.step_s = 0, 0.0
