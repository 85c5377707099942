"""vLLM schedulers, sync and async, with CFG pairs that are admitted, preempted and finished together.

All changes are made around the stock `schedule`. Inside its loop only `_reserve_prefill_lookahead` is overridden.
vLLM calls it for every request right before it allocates KV blocks, and 0 means "not in this step".

Requests run, wait and are preempted by age (per class if KV shares are set, see `KvShares`). Therefore no reply waits
while a younger one runs. The exception is an unconditional request, which is created when the audio segment of its
reply begins. It waits for at most `max_num_seqs` - 2 younger replies that already run. Its slot is reserved, their
blocks are freed for it, youngest reply first, and no new request is admitted before it.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from stretto.engine.request.family import family_of
from stretto.engine.request.pairs import UNCONDITIONAL_SUFFIX
from stretto.engine.request.rules import SegmentRules
from stretto.engine.request.wire import NO_CHANGE
from stretto.engine.scheduling.adaptive_guidance import AdaptiveGuidance
from stretto.engine.scheduling.held_replies import HeldReplies
from stretto.engine.scheduling.kv_blocks import KvBlocks
from stretto.engine.scheduling.kv_shares import KvShares
from stretto.engine.scheduling.planner import PairPlanner
from stretto.engine.scheduling.request_state import RequestState
from stretto.engine.scheduling.request_table import RequestTable
from stretto.engine.scheduling.sampled_rows import SampledRows
from stretto.engine.scheduling.step_load import StepLoad
from stretto.engine.scheduling.step_stats import StepStats, share_of
from stretto.engine.scheduling.supported import check_supported
from stretto.engine.scheduling.unconditional_output import UnconditionalOutput
from stretto.engine.scheduling.waiting_queue import passing_over, put_first, put_first_behind
from stretto.streams.segment import Segment

# Cached because they are used per row, and enum member access is slow in Python 3.11.
RUNNING, ABORTED = RequestStatus.RUNNING, RequestStatus.FINISHED_ABORTED
TEXT, TRANSITION, AUDIO = Segment.TEXT, Segment.TRANSITION, Segment.AUDIO

if TYPE_CHECKING:  # mix-in for either of vLLM's schedulers; type-checked against the synchronous one
    Base = Scheduler
else:
    Base = object


class PairedScheduling(Base):
    """Scheduler hooks: vLLM calls them, the parts built in `__init__` decide, and the hooks apply the decisions."""

    _num_in_advance = 0  # sampled tokens counted in a step before they are known (async scheduling)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        config = self.vllm_config
        rules = SegmentRules(family_of(config.model_config.hf_config), self.max_model_len)
        check_supported(config, self.kv_cache_config, rules)
        blocks = KvBlocks(self.kv_cache_manager, self.block_size, rules.num_open_rows)
        load = StepLoad(rules.family.frame_rate * rules.family.rows_per_frame)
        self.table = RequestTable(rules, self.hash_block_size)
        self.planner = PairPlanner(self.table, blocks)
        self.guidance = AdaptiveGuidance(self.table, blocks, load, config.max_concurrent_batches)
        self.texts = HeldReplies(self.table, self.planner, blocks)
        self.table.followers = self.guidance, self.texts
        self.shares = KvShares(self.table, blocks, config, self.kv_cache_config)
        self.unconditional = UnconditionalOutput(self.table, blocks, self._num_in_advance)
        self.stats = StepStats(self.table, self.guidance, self.texts, blocks, share_of(config))
        # Planned step: rows granted to each running request, and whether new requests may be admitted.
        self._grants, self._admits = dict[str, int](), True
        # Step whose output is processed: scheduled requests and their samples.
        self._scheduled: dict[str, int] = {}
        self._sampled = SampledRows(rules.family.layout, rules.max_rows_per_step)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Schedule one step: plan, run vLLM's scheduler, check the pair invariant, record statistics."""
        self.stats.begin_step()
        self._change_guidance()
        self._plan()
        with passing_over(self.waiting, self.shares.full(self.waiting, self.running), self.texts.held(self.waiting)):
            output = super().schedule(throttle_prefills)
        output.scheduled_new_reqs = [self.table[data.req_id].for_worker(data) for data in output.scheduled_new_reqs]
        output.scheduled_cached_reqs = self.texts.tell(output.scheduled_cached_reqs)
        if self._num_in_advance:
            self.table.count_bursts(output.num_scheduled_tokens)
        num_rows = output.total_num_scheduled_tokens
        self.planner.check(output.num_scheduled_tokens, num_rows, self.running)
        if num_rows == 0:
            self._preempt(self.planner.stuck(self.running))
        self.guidance.end_schedule(num_rows)
        self.stats.end_schedule(num_rows)
        return output

    def _change_guidance(self) -> None:
        """Remove and re-create unconditional requests as the guidance policies require."""
        self._drop_unconditional(self.guidance.ended())
        dropped, restored = self.guidance.change(self.running, self.current_step)
        self._drop_unconditional(dropped)
        for state in restored:
            put_first(self.waiting, self._add_unconditional(state))

    def _plan(self) -> None:
        """Plan the next step; preempt the youngest CFG pairs until it fits, and then admit no new request."""
        self._admits = True
        while True:
            plan = self.planner.plan(self.running, self.max_num_scheduled_tokens)
            self.running, self._grants = plan.running, plan.grants
            put_first(self.waiting, *plan.awaited)
            if not plan.giving_way:
                break
            self._preempt(plan.giving_way)
            self._admits = False
        if giving_way := self.texts.giving_way(self.waiting, self.running, self.max_num_active_reqs):
            self._preempt(giving_way)

    def _preempt(self, halves: Sequence[Request]) -> None:
        """Preempt `halves` and move them to the head of the queue, after requests that running pairs wait for."""
        for request in halves:
            if request.status is RUNNING:
                self.running.remove(request)
                self._preempt_request(request, time.monotonic())
            else:  # the waiting member of a pair moves along with its partner
                put_first(self.waiting, request)
        put_first(self.waiting, *self.planner.awaited(self.running))

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        super()._preempt_request(request, timestamp, drop_stale_output)
        state = self.table[request.request_id]
        self._sampled.note_preempted(state)
        self.stats.count_preemption(state)

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """Return the number of rows of `request` that may be computed in this step."""
        grant = self._grants.get(request.request_id)
        if grant is not None:  # it was running when this step was planned
            return grant if grant <= num_new_tokens else 0  # never part of a multi-token step
        if (
            not self._admits
            or not self.planner.has_slot(request.request_id, self.running, self.max_num_active_reqs)
            or not self.shares.has_room(request, self.running)
        ):
            return 0  # vLLM's loop ends here, so no later request overtakes `request`
        wanted = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        if self.table.is_bound(request.request_id):  # it samples once both requests of the pair run
            wanted = min(wanted, request.num_tokens - num_computed_tokens - 1)
        return wanted

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[KVCacheBlocks, int, int, bool]:
        """Return vLLM's prefix-cache hit, one block shorter if the request must compute more rows itself."""
        blocks, num_tokens, boundary, diverged = super()._get_local_prefix_cache_hit(request)
        if num_tokens > 0 and self.table.must_compute_more(request, request.num_tokens - num_tokens):
            num_tokens -= self.block_size
            blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, num_tokens)
        return blocks, num_tokens, boundary, diverged

    def add_request(self, request: Request) -> None:
        """Queue a request, followed by its unconditional request if the reply begins with audio."""
        if self.texts.take(request):
            return  # more text for a request in progress is sent as a request, too
        state = self.table.add(request)
        super().add_request(request)
        if state.tracker.segment is AUDIO and state.pair is not None and self.guidance.begins(state, self.current_step):
            self._add_unconditional(state)

    def _add_unconditional(self, state: RequestState) -> Request:
        request = self.table.add_unconditional(state)
        super().add_request(request)
        return request

    def _drop_unconditional(self, states: Sequence[RequestState]) -> None:
        """Remove the unconditional requests of `states`, freeing their blocks and slots."""
        if states:
            super().finish_requests([self.table.drop_unconditional(state) for state in states], ABORTED)

    def finish_requests(self, request_ids: Any, finished_status: RequestStatus) -> list[Request]:
        """Finish requests together with the other requests of their CFG pairs."""
        if request_ids is None:
            request_ids = self.requests
        ids = self.table.with_partners([request_ids] if isinstance(request_ids, str) else request_ids)
        finished = super().finish_requests(ids, finished_status)
        self.table.remove(*ids)
        if finished:  # there may be no further step to publish the change
            self.stats.report(self.running, len(self.waiting))
        return [request for request in finished if not request.request_id.endswith(UNCONDITIONAL_SUFFIX)]

    def has_unfinished_requests(self) -> bool:
        """Return True if a step has work to do; False if all replies are blocked, waiting for text."""
        return super().has_unfinished_requests() and not self.texts.hold_all

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Pass the sampled tokens of a step to vLLM and send complete rows to the clients."""
        self._scheduled = scheduler_output.num_scheduled_tokens
        self._sampled.take(model_runner_output)
        others = self.unconditional.take(model_runner_output, self._sampled.codes, self._scheduled)
        scheduler_output.num_scheduled_tokens = others
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        scheduler_output.num_scheduled_tokens = self._scheduled
        for client in outputs.values():
            client.outputs = [each for each in client.outputs if each.finish_reason is None or self._complete(each)]
        self._sampled.send_preempted(outputs)
        self.stats.end_step(scheduler_output.total_num_scheduled_tokens, self.running, len(self.waiting))
        return outputs

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        """Record the codes, then the tokens, of one request, and return the rows to send.

        The codes are recorded before vLLM takes the tokens because the block hash of a row covers both.
        """
        state, codes = self.table.get(request.request_id), self._sampled.codes.get(request.request_id)
        if state is None or codes is None:
            return super()._update_request_with_output(request, new_token_ids, is_stale)
        state.history.put(request.num_tokens, codes)
        token_ids, stopped = super()._update_request_with_output(request, new_token_ids, is_stale)
        if state.is_unconditional:
            return [], stopped  # vLLM creates no output for an empty list
        self.texts.note_said(state)
        marks = [self._follow(state, token_id) for token_id in token_ids]
        return self._sampled.push(state, marks, token_ids, stopped or state.waits_for_words), stopped

    def _follow(self, state: RequestState, token_id: int) -> int:
        """Advance `state` by one of its newest rows and return the row's guidance mark."""
        segment = state.tracker.push(token_id)
        if segment is TEXT:
            begins = state.tracker.audio_start >= 0 and state.pair is not None
            if begins and self.guidance.begins(state, self.current_step):
                put_first_behind(self.waiting, self._add_unconditional(state), state.request)
        elif segment is not TRANSITION and state.asks_for_guidance:
            return state.note_guidance(state.partner_id in self._scheduled)
        return NO_CHANGE

    def _complete(self, output: EngineCoreOutput) -> bool:
        """Append the trailer to the last row in `output`; return False if no client receives that output."""
        request_id = output.request_id
        if request_id.endswith(UNCONDITIONAL_SUFFIX):
            self.table.remove(request_id)
            return False
        state, ids = self.table.get(request_id), self.table.with_partners([request_id])
        if state is not None:
            output.new_token_ids = [*output.new_token_ids, *state.trailer()]
        super().finish_requests(ids - {request_id}, ABORTED)
        self.table.remove(*ids)
        return True


class SpeechScheduler(PairedScheduling, Scheduler):
    """Scheduler that runs one step at a time."""


class SpeechAsyncScheduler(PairedScheduling, AsyncScheduler):
    """Scheduler that schedules the next step while one is in flight."""

    _num_in_advance = 1
