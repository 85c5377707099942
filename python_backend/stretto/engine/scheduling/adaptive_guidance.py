"""Guidance policies `until_s` and `adaptive`, and the measured step time on which `adaptive` depends."""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vllm.v1.request import Request, RequestStatus

from stretto.engine.scheduling.planner import KvBlocks
from stretto.engine.scheduling.request_state import RequestState
from stretto.engine.scheduling.request_table import RequestTable
from stretto.streams.layout import Segment

# Minimum number of steps averaged after a change before requests are removed: 0.3 s of audio at 25 Hz.
SETTLE_STEPS = 8
# Minimum number of steps averaged before one unconditional request is re-created, which costs a prefill.
RESTORE_STEPS = 16
# Window of the moving average, long enough that a single long prompt does not look like overload.
AVERAGED_STEPS = 16
# Maximum predicted step time with one more request, relative to the row period. The rest is left for new requests.
RESTORE_BELOW = 0.85


class StepLoad:
    """Moving average of the step time, for comparison with the duration of one audio row.

    Args:
        row_rate: Audio rows per second; 0 if unknown.
    """

    def __init__(self, row_rate: float, clock: Callable[[], float] = time.perf_counter):
        self.period_s = 1 / row_rate if row_rate > 0 else math.inf
        self.clock = clock
        self.step_s = 0.0
        self._num_steps = 0
        self._began_s: float | None = None

    def begin_step(self, is_counted: bool) -> None:
        """Record the start of a step, and average the duration of the previous one if `is_counted`."""
        now = self.clock()
        if is_counted and self._began_s is not None:
            self._num_steps += 1
            self.step_s += (now - self._began_s - self.step_s) / min(self._num_steps, AVERAGED_STEPS)
        self._began_s = now

    def end_schedule(self, num_rows: int) -> None:
        """Stop timing a step without rows, because the engine may sleep."""
        if num_rows == 0:
            self._began_s = None

    def excess(self, num_rows: int) -> int:
        """Return how many unconditional requests to remove, or -1 if one can be re-created, and 0 for no change."""
        if self.step_s > self.period_s and self._num_steps >= SETTLE_STEPS:
            # Step time is assumed to be proportional to rows. This removes too few requests; the next decision removes
            # the rest.
            return max(1, round(num_rows * (1 - self.period_s / self.step_s)))
        foreseen_s = self.step_s * (num_rows + 1) / max(1, num_rows)
        if foreseen_s < RESTORE_BELOW * self.period_s and self._num_steps >= RESTORE_STEPS:
            return -1
        return 0

    def start_over(self) -> None:
        """Discard the average, because steps before a change do not predict the steps after it."""
        self._num_steps = 0
        self.step_s = 0.0


class GuidanceChanges(NamedTuple):
    """Conditional requests that lose (`dropped`) or regain (`restored`) their unconditional request before a step."""

    dropped: Sequence[RequestState] = ()
    restored: Sequence[RequestState] = ()


UNCHANGED = GuidanceChanges()


class AdaptiveGuidance:
    """Policy that decides, before each step, which unconditional requests are removed or re-created.

    Args:
        lag: Number of steps for which the worker may still compute a removed request. Its id must not be reused sooner.

    Attributes:
        limited: Requests with policy `until_s` whose guidance has not ended yet, keyed by id.
        adaptive: Ids of requests with policy `adaptive`.
        dropped: Step at which each request lost its unconditional request, keyed by id.
        returning: Like `dropped`, but for requests that are about to regain an unconditional request.
    """

    def __init__(self, table: RequestTable, blocks: KvBlocks, load: StepLoad, lag: int):
        self._table = table
        self._blocks = blocks
        self._lag = lag
        self.load = load
        self.limited: dict[str, RequestState] = {}
        self.adaptive: set[str] = set()
        self.dropped: dict[str, int] = {}
        self.returning: dict[str, int] = {}
        self.num_dropped = self.num_restored = 0

    def add(self, state: RequestState) -> None:
        """Track the guidance of a request that has arrived."""
        if state.pair is None:
            return
        if state.prompt.sampling.policy == "until_s":
            self.limited[state.request.request_id] = state
        elif state.is_adaptive:
            self.adaptive.add(state.request.request_id)

    def remove(self, request_id: str) -> None:
        """Stop tracking a request that has ended."""
        self.adaptive.discard(request_id)
        for some in (self.limited, self.dropped, self.returning):
            some.pop(request_id, None)

    def ended(self) -> list[RequestState]:
        """Remove and return the requests whose guidance has reached the time limit of policy `until_s`."""
        ended = [state for state in self.limited.values() if state.next_output >= state.limit]
        for state in ended:
            del self.limited[state.request.request_id]
        return ended

    def begins(self, state: RequestState, step: int) -> bool:
        """Return True if a request whose audio begins at step `step` is guided from the start.

        A request with policy `adaptive` is not guided if older requests are running without guidance, because the
        youngest requests lose guidance first.
        """
        if not state.is_adaptive or not self.dropped:
            return True
        self._note_dropped(state, step)
        return False

    def _note_dropped(self, state: RequestState, step: int) -> None:
        self.dropped[state.request.request_id] = step
        self.num_dropped += 1

    def change(self, running: Sequence[Request], step: int) -> GuidanceChanges:
        """Return the guidance changes to apply before a step, given the running requests, oldest first."""
        self.load.begin_step(is_counted=not self.returning)
        if not self.adaptive:
            return UNCHANGED
        restored = [state for state in map(self._table.__getitem__, list(self.returning)) if self._follow(state)]
        if self.returning:
            return GuidanceChanges(restored=restored)
        excess = self.load.excess(len(running))
        if excess > 0:
            return GuidanceChanges(dropped=self._drop(excess, running, step))
        return GuidanceChanges(restored=self._restore_one(running, step) if excess < 0 else ())

    def end_schedule(self, num_rows: int) -> None:
        """Record that a step of `num_rows` rows has been scheduled."""
        self.load.end_schedule(num_rows)

    def _follow(self, state: RequestState) -> bool:
        """Return True if the unconditional request of a request in `returning` can be created now.

        All sampled rows of the conditional request must be known. A request that is guided again, or can no longer be
        guided, leaves `returning`.
        """
        request = state.request
        pair = state.pair
        assert pair is not None
        if pair.unconditional is not None:
            if state.next_output > pair.first_output or request.status != RequestStatus.RUNNING:
                del self.returning[request.request_id]
            return False
        if request.status != RequestStatus.RUNNING or state.reply.segment is not Segment.AUDIO:
            self._table.stop_awaiting(state)
            self.dropped[request.request_id] = self.returning.pop(request.request_id)
            return False
        is_known = request.num_output_placeholders == 0
        self.num_restored += is_known
        return is_known

    def _drop(self, number: int, running: Sequence[Request], step: int) -> list[RequestState]:
        """Mark the `number` youngest guided requests with policy `adaptive` as unguided, and return their states."""
        dropped = list[RequestState]()
        for request in reversed(running):
            if len(dropped) == number:
                break
            state = self._table[request.request_id]
            if state.is_unconditional or not state.is_adaptive:
                continue
            if state.pair is not None and state.pair.unconditional is not None:
                dropped.append(state)
                self._note_dropped(state, step)
                self.load.start_over()
        return dropped

    def _restore_one(self, running: Sequence[Request], step: int) -> list[RequestState]:
        """Select the oldest request that can regain guidance, and return it if that is possible now."""
        for request in running:
            dropped_at = self.dropped.get(request.request_id)
            if dropped_at is None or step - dropped_at <= self._lag:
                continue
            state = self._table[request.request_id]
            if self._can_restore(state, len(running)):
                self.returning[request.request_id] = self.dropped.pop(request.request_id)
                self._table.await_unconditional(state)
                self.load.start_over()
                return [state] if self._follow(state) else []
        return []

    def _can_restore(self, state: RequestState, num_running: int) -> bool:
        """Return True if the audio continues and a new unconditional request fits without a preemption."""
        return (
            state.reply.segment is Segment.AUDIO
            and not state.request.is_prefill_chunk
            and self._blocks.needed(state.request.num_tokens) + num_running <= self._blocks.num_free()
        )
