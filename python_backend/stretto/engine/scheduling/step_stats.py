"""Scheduler metrics, updated in every step and published periodically."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from vllm.config import VllmConfig
from vllm.v1.request import Request

from stretto.engine.request.protocol import STATS_KEY, EngineStats, SharedStats
from stretto.engine.scheduling.guidance import AdaptiveGuidance
from stretto.engine.scheduling.held_replies import HeldReplies
from stretto.engine.scheduling.planner import KvBlocks
from stretto.engine.scheduling.request_table import RequestState, RequestTable

Share = Callable[[EngineStats], None]
PERIOD_S = 0.1  # shorter than a metrics poll, longer than many steps


class StepStats:
    """Step counters, published through `share` if it is given."""

    def __init__(
        self,
        table: RequestTable,
        guidance: AdaptiveGuidance,
        texts: HeldReplies,
        blocks: KvBlocks,
        share: Share | None,
    ):
        self._table, self._guidance, self._texts, self._blocks, self._share = table, guidance, texts, blocks, share
        self.values = EngineStats()
        self._begun: deque[float] = deque()  # scheduling time of each step in flight
        self._ended = self._written = 0.0

    def begin_step(self) -> None:
        """Record that a step is about to be scheduled."""
        self._begun.append(time.perf_counter())

    def end_schedule(self, num_rows: int) -> None:
        """Record that a step has been scheduled."""
        self.values.engine_rows_total += num_rows

    def end_step(self, num_rows: int, running: Sequence[Request], num_waiting: int) -> None:
        """Record that the oldest step in flight has ended, and publish the metrics if they are due."""
        begun, now, values = self._begun.popleft(), time.perf_counter(), self.values
        if num_rows > 0:
            values.step_seconds = now - begun
            # Steps in flight overlap: what counts is the time since the step before ended.
            values.engine_busy_seconds_total += min(values.step_seconds, now - self._ended)
            values.engine_steps_total += 1
            self._ended = now
        if now - self._written >= PERIOD_S or not running or self._texts.hold_all:
            self._written = now
            self.report(running, num_waiting)

    def count_preemption(self, state: RequestState) -> None:
        """Count a preempted request; a CFG pair is counted with its conditional request."""
        self.values.preemptions_total += 1
        self.values.preempted_pairs_total += state.asks_for_guidance and not state.is_unconditional

    def report(self, running: Sequence[Request], num_waiting: int) -> None:
        """Publish the current state."""
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
        # Pairs of which one request runs and the other exists but does not run.
        values.held_pairs = sum(pair.unconditional is not None for pair in pairs) - both
        values.dropped_halves_total = self._guidance.num_dropped
        values.restored_halves_total = self._guidance.num_restored
        values.kv_usage = self._blocks.usage
        values.replies_without_words = self._texts.num_held
        values.seconds_without_words_total = self._texts.held_s


def share_of(config: VllmConfig) -> Share | None:
    """Return the function that writes this scheduler's line of the shared statistics, or None if there are none."""
    parallel, options = config.parallel_config, config.additional_config
    path = options.get(STATS_KEY) if isinstance(options, dict) else None
    if path is None:
        return None
    return partial(SharedStats(Path(path), parallel.data_parallel_size).write, parallel.data_parallel_rank)
