"""Metrics of the scheduler."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from vllm.config import VllmConfig
from vllm.v1.request import Request

from stretto.engine.protocol import STATS_KEY, EngineStats, SharedStats
from stretto.engine.scheduling.adaptive_guidance import AdaptiveGuidance
from stretto.engine.scheduling.held_replies import HeldReplies
from stretto.engine.scheduling.planner import KvBlocks
from stretto.engine.scheduling.request_state import RequestState
from stretto.engine.scheduling.request_table import RequestTable
from stretto.engine.scheduling.step_clock import StepClock

Share = Callable[[EngineStats], None]
PERIOD_S = 0.1  # shorter than the interval of metrics polls, longer than most steps


class StepStats:
    """Metrics of the scheduler, published through `share` every PERIOD_S unless `share` is None."""

    def __init__(
        self,
        table: RequestTable,
        guidance: AdaptiveGuidance,
        texts: HeldReplies,
        blocks: KvBlocks,
        share: Share | None,
        clock: StepClock,
    ):
        self._table = table
        self._guidance = guidance
        self._texts = texts
        self._blocks = blocks
        self._share = share
        self.values = EngineStats()
        self._clock = clock
        self._written = 0.0

    def begin_step(self) -> None:
        """Record that a step is about to be scheduled."""
        self._clock.begin()

    def end_schedule(self, num_rows: int) -> None:
        """Count the rows of a step that has been scheduled."""
        self.values.engine_rows_total += num_rows

    def end_step(self, num_rows: int, running: Sequence[Request], num_waiting: int) -> None:
        """Record that the oldest step in flight has ended, and publish the metrics if they are due."""
        seconds = self._clock.end(num_rows > 0)
        values = self.values
        if num_rows > 0:
            values.step_seconds = seconds
            values.engine_busy_seconds_total += self._clock.durations[-1]
            values.engine_steps_total += 1
        now = self._clock.now()
        if now - self._written >= PERIOD_S or not running or self._texts.all_held:
            self._written = now
            self.report(running, num_waiting)

    def count_preemption(self, state: RequestState) -> None:
        """Count a preempted request. A preempted CFG pair is counted with its conditional request."""
        self.values.preemptions_total += 1
        self.values.preempted_pairs_total += state.asks_for_guidance and not state.is_unconditional

    def report(self, running: Sequence[Request], num_waiting: int) -> None:
        """Publish all metrics, given the running requests and the number of queued requests."""
        if self._share is not None:
            self._describe({request.request_id for request in running}, num_waiting)
            self._share(self.values)

    def _describe(self, running: set[str], num_waiting: int) -> None:
        values = self.values
        pairs = [pair for pair in (self._table[request_id].pair for request_id in running) if pair is not None]
        both = sum(pair.unconditional in running and pair.conditional in running for pair in pairs)
        values.running_requests = len(running)
        values.waiting_requests = num_waiting
        values.running_pairs = both / 2
        # Pairs with one running request whose other request exists but is not running.
        values.held_pairs = sum(pair.unconditional is not None for pair in pairs) - both
        values.dropped_halves_total = self._guidance.num_dropped
        values.restored_halves_total = self._guidance.num_restored
        values.kv_usage = self._blocks.usage
        values.replies_without_words = self._texts.num_held
        values.replies_without_frames = self._texts.num_silent
        values.seconds_without_words_total = self._texts.held_s


def share_of(config: VllmConfig) -> Share | None:
    """Return the function that publishes this scheduler's statistics, or None if nothing reads them."""
    parallel = config.parallel_config
    options = config.additional_config
    path = options.get(STATS_KEY) if isinstance(options, dict) else None
    if path is None:
        return None
    return partial(SharedStats(Path(path), parallel.data_parallel_size).write, parallel.data_parallel_rank)
