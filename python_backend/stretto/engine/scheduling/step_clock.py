"""Times of the engine's steps, which overlap: one is scheduled while another one runs."""

import time
from collections import deque
from collections.abc import Callable

NUM_DURATIONS = 8


class StepClock:
    """Times of the steps in flight, and durations of the last steps that computed rows.

    Steps in flight overlap. The duration of a step therefore begins at the end of the previous step, or at its own
    scheduling if that is later.

    Attributes:
        durations: The last durations, at most NUM_DURATIONS, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self.durations: deque[float] = deque(maxlen=NUM_DURATIONS)
        self._begun: deque[float] = deque()  # scheduling time of each step in flight
        self._ended = 0.0  # time at which the last step with rows ended

    @property
    def num_in_flight(self) -> int:
        """Number of steps that have been scheduled and have not ended."""
        return len(self._begun)

    @property
    def running_since(self) -> float:
        """Time at which the oldest step in flight began to run."""
        return max(self._begun[0], self._ended)

    def begin(self) -> None:
        """Record that a step is about to be scheduled."""
        self._begun.append(self.now())

    def end(self, has_rows: bool) -> float:
        """Record that the oldest step in flight has ended, and return the time since its scheduling, in seconds."""
        now = self.now()
        since = self.running_since
        begun = self._begun.popleft()
        if has_rows:
            self.durations.append(now - since)
            self._ended = now
        return now - begun
