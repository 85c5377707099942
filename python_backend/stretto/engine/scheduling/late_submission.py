"""Delay of a step's submission, for requests that arrive during a step."""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Self

from vllm.config import VllmConfig

KEY = "submit_early_ms"  # in vLLM's `additional_config`
NUM_DURATIONS = 8  # number of steps whose shortest duration is expected of the running step


class LateSubmission:
    """Delay of a step's submission until shortly before the running step ends.

    vLLM submits the next step while one runs. A request that arrives during a step then waits for the rest of that step
    and for the whole next one. With the delay, it joins the next step.
    """

    def __init__(
        self,
        early_s: float,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ):
        """Create the delay.

        Args:
            early_s: Time before the expected end of the running step, in seconds. It must cover the host's work for a
                step; otherwise the GPU waits for the host.
            clock: Function that returns the time in seconds.
            sleep: Function that waits for a number of seconds.
        """
        self._early_s = early_s
        self._clock = clock
        self._sleep = sleep
        self._submitted: deque[float] = deque()  # time of each step in flight
        self._durations: deque[float] = deque(maxlen=NUM_DURATIONS)
        self._ended = 0.0  # time at which the last step ended

    @classmethod
    def from_config(cls, config: VllmConfig) -> Self:
        """Return the delay that `submit_early_ms` of the engine's configuration sets; without it, nothing waits."""
        options = config.additional_config
        early_ms = options.get(KEY, math.inf) if isinstance(options, dict) else math.inf
        return cls(early_ms / 1000)

    def begin_step(self) -> None:
        """Record that a step is submitted."""
        self._submitted.append(self._clock())

    def end_step(self) -> None:
        """Record that the oldest step in flight has ended."""
        begun = max(self._submitted.popleft(), self._ended)
        self._ended = self._clock()
        self._durations.append(self._ended - begun)

    def wait(self) -> None:
        """Wait until the next step is due; return at once unless exactly one step is in flight.

        The shortest of the last durations is expected, so a step that follows longer ones is not submitted too late.
        """
        if len(self._submitted) != 1 or len(self._durations) < NUM_DURATIONS:
            return
        begun = max(self._submitted[0], self._ended)
        delay = begun + min(self._durations) - self._early_s - self._clock()
        if delay > 0:
            self._sleep(delay)
