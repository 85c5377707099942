"""The scheduler's own figures, counted in every step and written down now and then. A mixin over the schedulers."""

import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from stretto.engine.request.shared_stats import KEY, EngineStats, SharedStats

if TYPE_CHECKING:
    from stretto.engine.scheduling.planning import StepPlanning
else:
    StepPlanning = object

PERIOD_S = 0.1  # several times between two looks of whoever shows the figures, and many steps


class StepReporting(StepPlanning):
    """Writes its line of the memory that `SpeechLLM` made; without that it only counts."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.figures = EngineStats()
        parallel = self.vllm_config.parallel_config
        options = self.vllm_config.additional_config
        path = options.get(KEY) if isinstance(options, dict) else None
        self._shared = None if path is None else SharedStats(Path(path), parallel.data_parallel_size)
        self._line = parallel.data_parallel_rank
        self._begun: deque[float] = deque()  # when each step in flight was scheduled
        self._ended = self._written = 0.0

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Note when a step begins, and how many rows it computes."""
        self._begun.append(time.perf_counter())
        output = super().schedule(throttle_prefills)
        self.figures.engine_rows_total += output.total_num_scheduled_tokens
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Note when a step ends, and how things stand after it."""
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        begun, now, figures = self._begun.popleft(), time.perf_counter(), self.figures
        if scheduler_output.total_num_scheduled_tokens > 0:
            figures.step_seconds = now - begun
            # Steps in flight overlap: what counts is the time since the step before ended.
            figures.engine_busy_seconds_total += min(figures.step_seconds, now - self._ended)
            figures.engine_steps_total += 1
            self._ended = now
        if now - self._written >= PERIOD_S or not self.running:
            self._written = now
            self._write()
        return outputs

    def finish_requests(self, request_ids: Any, finished_status: RequestStatus) -> list[Request]:
        """An abort may leave nothing to do: no step would follow that says so."""
        finished = super().finish_requests(request_ids, finished_status)
        if finished:
            self._write()
        return finished

    def _write(self) -> None:
        if self._shared is not None:
            self._describe(self.figures)
            self._shared.write(self._line, self.figures)

    def _describe(self, figures: EngineStats) -> None:
        running = {request.request_id for request in self.running}
        pairs = [pair for pair in (self.replies[request_id].pair for request_id in running) if pair is not None]
        both = sum(pair.unconditional in running and pair.conditional in running for pair in pairs)
        figures.running_requests = len(running)
        figures.waiting_requests = len(self.waiting)
        figures.running_pairs = both / 2
        # A half runs, and its other half exists and does not.
        figures.held_pairs = sum(pair.unconditional is not None for pair in pairs) - both
        figures.dropped_halves_total = self.num_dropped_halves
        figures.restored_halves_total = self.num_restored_halves
        figures.kv_usage = self.kv_cache_manager.usage

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        super()._preempt_request(request, timestamp, drop_stale_output)
        reply = self.replies[request.request_id]
        self.figures.preemptions_total += 1
        self.figures.preempted_pairs_total += reply.asks_for_guidance and not reply.is_unconditional
