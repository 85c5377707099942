"""vLLM's schedulers, sync and async, with guidance pairs that are admitted, preempted and finished together.

Everything happens around the stock `schedule`. Inside its loop one hook decides, `_reserve_prefill_lookahead`: it is
asked for every request right before KV blocks are allocated, and 0 means "not now".

Replies run, wait and give way by age (within a class, where KV shares are set: `sharing.py`). This is the bound on how
often one is overtaken: no reply waits while a younger one runs. Only a half can wait behind younger replies, the
unconditional one that is created when its audio segment begins: behind those that run beside it by then, at most
`max_num_seqs` - 2. They keep their places, as its own was kept for it, and give it their blocks, the youngest first;
nobody joins them before it.
"""

import time
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from stretto.engine.request.new_request import SpeechRequestData
from stretto.engine.scheduling.reporting import StepReporting
from stretto.engine.scheduling.sharing import KvSharing


class PairedScheduling(KvSharing):
    """The mixin, over either of vLLM's schedulers."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._check_config()

    def _check_config(self) -> None:
        config, family = self.vllm_config, self.replies.rules.family
        if not config.use_v2_model_runner:
            raise ValueError("the speech plugin needs vLLM's Model Runner V2: set VLLM_USE_V2_MODEL_RUNNER=1")
        if self.policy != SchedulingPolicy.FCFS:
            raise ValueError(f"scheduling_policy: expected fcfs, got {self.policy.value}")
        if len(self.kv_cache_config.kv_cache_groups) != 1:
            raise ValueError("the speech plugin supports models whose attention layers are all of one kind")
        refused = {
            "speculative_config": config.speculative_config is not None,
            "pipeline_parallel_size": config.parallel_config.pipeline_parallel_size > 1,
            "long_prefill_token_threshold": config.scheduler_config.long_prefill_token_threshold > 0,
        }
        if any(refused.values()):
            raise ValueError(f"the speech plugin works without {[name for name in refused if refused[name]]}")
        if config.max_concurrent_batches > self.replies.rules.least_rows_to_audio:
            raise ValueError(
                f"{family.name}: {config.max_concurrent_batches} steps in flight would outrun the "
                f"{self.replies.rules.least_rows_to_audio} rows from its text to its audio; switch async scheduling off"
            )

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """One step: preempt by whole pairs until it fits, let vLLM schedule, check the invariant."""
        self._plan()
        output = super().schedule(throttle_prefills)
        self.governor.end_schedule(output.total_num_scheduled_tokens)
        output.scheduled_new_reqs = [self._with_history(data) for data in output.scheduled_new_reqs]
        self._check_pairs(output)
        is_idle = not output.num_scheduled_tokens and not any(r.num_in_flight_tokens for r in self.running)
        if is_idle and self._tail() != self.running:
            self._preempt(self._tail())  # halves hold blocks and wait for each other's: the youngest gives way
        return output

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """How many of the rows that vLLM wants to compute may be computed now."""
        grant = self._grants.get(request.request_id)
        if grant is not None:  # it ran when this step was planned
            return grant if grant < num_new_tokens else num_new_tokens
        wanted = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        if not self._admits or not self._has_slot(request) or not self._has_share(request):
            return 0  # vLLM's loop ends here: nobody behind `request` in the queue passes it
        if self._may_not_finish(request):
            wanted = min(wanted, request.num_tokens - num_computed_tokens - 1)
        return wanted

    def _may_not_finish(self, request: Request) -> bool:
        """Whether `request` enters a step without its last row: halves sample only once both run."""
        return self.replies[request.request_id].params.is_unconditional or self._guidance_has_begun(request)

    def _has_slot(self, request: Request) -> bool:
        """Whether `request` finds a run slot, with those kept free that the halves of running pairs will need."""
        self._count_running()
        pair = self.replies[request.request_id].pair
        needed = 1
        if pair is not None:
            needed = 0 if pair.other(request.request_id) in self._running_ids else 2
        return len(self.running) + self._owed + needed <= self.max_num_active_reqs

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[KVCacheBlocks, int, int, bool]:
        """vLLM's lookup, a block shorter where it would leave a half with nothing to compute before it may sample."""
        blocks, num_tokens, boundary, diverged = super()._get_local_prefix_cache_hit(request)
        if num_tokens > 0 and request.num_tokens - num_tokens < 2 and self._may_not_finish(request):
            num_tokens -= self.block_size
            blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, num_tokens)
        return blocks, num_tokens, boundary, diverged

    def _with_history(self, data: NewRequestData) -> SpeechRequestData:
        reply = self.replies[data.req_id]
        if reply.queue_s is None:
            reply.queue_s = time.time() - reply.request.arrival_time
        return SpeechRequestData.of(data, reply.params, reply.history.rows(0, reply.request.num_tokens))

    def _check_pairs(self, output: SchedulerOutput) -> None:
        """The invariant: a half that samples a guided row has its other half sample in the same step."""
        scheduled, steady = output.num_scheduled_tokens, self._steady
        if (
            steady is not None
            and len(steady) == len(self.running) == len(scheduled) == output.total_num_scheduled_tokens
        ):
            return  # all that run decode a row each, and every pair among them is whole
        for request_id in scheduled:
            pair, request = self.replies[request_id].pair, self.requests[request_id]
            if pair is None or request.is_prefill_chunk:
                continue
            conditional = self.requests[pair.conditional]
            sampled = conditional.num_output_tokens + conditional.num_output_placeholders - self._placeholders
            if request is conditional and sampled < pair.first_output:
                continue
            other = pair.other(request_id)
            samples = other in scheduled and not self.requests[other].is_prefill_chunk
            assert samples, f"{request_id} would sample without {other}: {scheduled}, output {sampled} of {pair}"


class SpeechScheduler(StepReporting, PairedScheduling, Scheduler):
    """One step at a time."""


class SpeechAsyncScheduler(StepReporting, PairedScheduling, AsyncScheduler):
    """The next step is scheduled while one is in flight."""

    _placeholders = 1

    def _append(self, request: Request, token_ids: list[int]) -> None:
        super()._append(request, token_ids)
        request.num_output_placeholders -= len(token_ids)
        self.kv_cache_manager.cache_blocks(request, request.num_computed_tokens - request.num_output_placeholders)
