"""Delay before a step is submitted, so that requests that arrive during a step join the next one."""

import math
import time
from collections.abc import Callable
from typing import Self

from vllm.config import VllmConfig

from stretto.engine.scheduling.step_clock import NUM_DURATIONS, StepClock
from stretto.machine.sizing import HOST_MS_A_ROW

KEY = "submit_early_ms"  # in vLLM's `additional_config`


class LateSubmission:
    """Delay that submits a step only shortly before the running step ends.

    vLLM submits the next step while one runs. A request that arrives during a step then waits for the rest of that step
    and for the whole next one. With the delay, it joins the next step.

    Args:
        early_s: Time before the expected end of the running step, in seconds, to which each request adds HOST_MS_A_ROW.
            It must cover the host's work for a step; otherwise the GPU waits for the host.
    """

    def __init__(self, early_s: float, clock: StepClock, sleep: Callable[[float], None] = time.sleep):
        self._early_s = early_s
        self._clock = clock
        self._sleep = sleep

    @classmethod
    def from_config(cls, config: VllmConfig, clock: StepClock) -> Self:
        """Return the delay set by the option `submit_early_ms`; without this option, nothing waits."""
        options = config.additional_config
        early_ms = options.get(KEY, math.inf) if isinstance(options, dict) else math.inf
        return cls(early_ms / 1000, clock)

    def wait(self, num_requests: int) -> None:
        """Wait until the next step is due, or return at once unless exactly one step is in flight.

        The running step is expected to take as long as the shortest of the last steps, so that the next one is not
        late.
        """
        clock = self._clock
        if clock.num_in_flight != 1 or len(clock.durations) < NUM_DURATIONS:
            return
        early_s = self._early_s + num_requests * HOST_MS_A_ROW / 1000
        delay = clock.running_since + min(clock.durations) - early_s - clock.now()
        if delay > 0:
            self._sleep(delay)
