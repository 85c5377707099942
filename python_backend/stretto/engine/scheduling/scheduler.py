"""Subclasses of vLLM's synchronous and asynchronous schedulers that support CFG pairs and streamed text.

One step, with the overrides that vLLM calls in it (indented below the call of vLLM's own method):

    has_requests                            waits until the step is due
    add_request                             for each request that has arrived; queues pairs
    schedule
        guidance, planner, texts, turns     begin or end guidance; grant rows; preempt pairs
        vLLM's schedule
            _reserve_prefill_lookahead      rows of each running request: its grant; of a new one: its share
            _get_local_prefix_cache_hit     of each new request
            _preempt_request                if KV blocks are missing
        planner.check, guidance, turns, stats
    (the worker runs the step)
    update_from_output
        vLLM's update_from_output
            _update_request_with_output     of each request: records its rows; `_follow` begins or ends guidance
        _complete                           of each request that has ended: its partner ends, too
    finish_requests                         of requests that clients have aborted
"""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vllm.config import VllmConfig
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from stretto.engine.protocol import NO_CHANGE, UNCONDITIONAL_SUFFIX, family_of
from stretto.engine.reply_rules import SegmentRules
from stretto.engine.scheduling.adaptive_guidance import AdaptiveGuidance, StepLoad
from stretto.engine.scheduling.client_turns import ClientTurns, step_quantum
from stretto.engine.scheduling.held_replies import HeldReplies, put_first, put_first_after, skipping
from stretto.engine.scheduling.late_submission import LateSubmission
from stretto.engine.scheduling.planner import KvBlocks, KvShares, PairPlanner
from stretto.engine.scheduling.request_state import RequestState
from stretto.engine.scheduling.request_table import RequestTable
from stretto.engine.scheduling.sampled_rows import SampledRows
from stretto.engine.scheduling.step_clock import StepClock
from stretto.engine.scheduling.step_stats import StepStats, share_of
from stretto.engine.scheduling.supported import check_supported
from stretto.engine.scheduling.unconditional_output import RUNNING, UnconditionalOutput
from stretto.hops import Hop, stamp
from stretto.machine.kv_blocks import SessionBlocks
from stretto.machine.worker_process import die_with_parent
from stretto.streams.layout import Segment

LIVE_RESERVE_KEY = "live_reserve"  # in vLLM's `additional_config`


def reserves_live(config: VllmConfig) -> bool:
    """Return True if live sessions keep their KV blocks and are never preempted, which is the default."""
    options = config.additional_config
    return bool(options.get(LIVE_RESERVE_KEY, True)) if isinstance(options, dict) else True


# Cached because they are used per row, and enum member access is slow in Python 3.11.
ABORTED = RequestStatus.FINISHED_ABORTED
TEXT = Segment.TEXT
TRANSITION = Segment.TRANSITION
AUDIO = Segment.AUDIO

if TYPE_CHECKING:  # mix-in for either of vLLM's schedulers; type-checked against the synchronous one
    Base = Scheduler
else:
    Base = object


class PairedScheduling(Base):
    """Overrides of vLLM's scheduler that apply the decisions on CFG pairs and streamed text."""

    _num_in_advance = 0  # sampled tokens counted in a step before they are known (async scheduling)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        config = self.vllm_config
        rules = SegmentRules(family_of(config.model_config.hf_config), self.max_model_len)
        check_supported(config, self.kv_cache_config, rules)
        (cache,) = self.kv_cache_manager.coordinator.single_type_managers
        window = getattr(cache, "sliding_window", None)
        most = cache.max_admission_blocks_per_request
        steps = config.max_concurrent_batches
        session = SessionBlocks.from_rows(self.max_model_len, cache.block_size, window, steps)
        blocks = KvBlocks(self.kv_cache_manager, cache.block_size, rules.num_reopened_rows, most, session)
        blocks.shorten_allocation()
        load = StepLoad(rules.family.frame_rate * rules.family.rows_per_frame)
        self.table = RequestTable(rules, self.hash_block_size)
        self.planner = PairPlanner(self.table, blocks)
        self.guidance = AdaptiveGuidance(self.table, blocks, load, steps)
        self.blocks = blocks
        self.texts = HeldReplies(self.table, self.planner, blocks, keeps_sessions=reserves_live(config))
        quantum = step_quantum(config.device_config.device_type, config.scheduler_config.max_num_seqs)
        self.turns = ClientTurns(self.table, self.planner, quantum)
        self.table.followers = self.guidance, self.texts, self.turns
        self.shares = KvShares(self.table, blocks, config, self.kv_cache_config)
        self.unconditional = UnconditionalOutput(self.table, blocks, self._num_in_advance)
        share = share_of(config)
        if share is not None:
            die_with_parent()  # the parent process is the host; in a spawned engine, the host's fork hook has not run
        clock = StepClock()
        self.stats = StepStats(self.table, self.guidance, self.texts, blocks, share, clock)
        self.submission = LateSubmission.from_config(config, clock)
        # Planned step: rows granted to each running request, and whether new requests may be admitted.
        self._grants: Mapping[str, int] = {}
        self._admits = True
        # Step whose output is processed: scheduled requests and their samples.
        self._scheduled: dict[str, int] = {}
        self._sampled = SampledRows(rules)
        self._audio_starts: dict[str, int] = {}  # by reply whose text has ended since the last scheduled step
        self._ended: list[str] = []  # conditional requests whose unconditional request ends before the next step

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Schedule one step: plan it, run vLLM's scheduler, check the CFG pairs and record statistics."""
        self.stats.begin_step()
        self._change_guidance()
        self._plan()
        full = self.shares.full(self.waiting, self.running)
        held = self.texts.held(self.waiting)
        with skipping(self.waiting, full, held, self.turns.resting(self.waiting)):
            output = super().schedule(throttle_prefills)
        output.scheduled_new_reqs = [self.table[data.req_id].for_worker(data) for data in output.scheduled_new_reqs]
        audio_starts = self._audio_starts
        self._audio_starts = {}
        output.scheduled_cached_reqs = self.texts.attach_news(output.scheduled_cached_reqs, audio_starts)
        if self._num_in_advance:
            self.table.count_bursts(output.num_scheduled_tokens)
        num_rows = output.total_num_scheduled_tokens
        self.planner.check(output.num_scheduled_tokens, num_rows, self.running)
        if num_rows == 0 and not self.turns.are_limiting:
            self._preempt(self.planner.stuck(self.running))
        self.guidance.end_schedule(num_rows)
        self.turns.end_schedule(output.num_scheduled_tokens)
        self.stats.end_schedule(num_rows)
        return output

    def _change_guidance(self) -> None:
        self._drop_unconditional(self.guidance.ended())
        ended = self._ended
        self._ended = []
        states = [self.table[request_id] for request_id in ended if request_id in self.table]
        self._drop_unconditional([state for state in states if state.pair is not None and state.pair.unconditional])
        dropped, restored = self.guidance.change(self.running, self.current_step)
        self._drop_unconditional(dropped)
        for state in restored:
            put_first(self.waiting, self._add_unconditional(state))

    def _plan(self) -> None:
        """Plan the next step, and preempt the youngest CFG pairs until the plan fits.

        After a preemption, no queued request is admitted in this step.
        """
        self._admits = True
        while True:
            plan = self.planner.plan(self.running, self.max_num_scheduled_tokens)
            self.running = plan.running
            self._grants = plan.grants
            put_first(self.waiting, *plan.awaited)
            if plan.to_preempt:
                self._preempt(plan.to_preempt)
                self._admits = False
                continue
            self.turns.order(self.waiting, self.running)
            slots = self.running, self.max_num_active_reqs
            blocked = self.texts.to_preempt(self.waiting, *slots)
            if not (to_preempt := blocked or self.turns.to_preempt(self._first_waiting(), *slots)):
                break
            self._preempt(to_preempt)
        if self.turns.are_needed:
            self._grants = self.turns.share_step(self._grants, self.running, self._joining(plan.awaited))

    def _first_waiting(self) -> Request | None:
        """Return the first queued request that may run, or None while all requests are from one host."""
        if not self._admits or not self.turns.are_needed:
            return None
        skipped = {*self.shares.full(self.waiting, self.running), *self.texts.held(self.waiting)}
        return next((request for request in self.waiting if request not in skipped), None)

    def _joining(self, awaited: Sequence[Request]) -> list[Request]:
        """Return the requests in `awaited`, and the first other queued request if there is capacity for it."""
        first = self._first_waiting()
        if first is None or first in awaited:
            return list(awaited)
        has_room = self.planner.has_room(first, self.running, self.max_num_active_reqs)
        return [*awaited, first] if has_room else list(awaited)

    def _preempt(self, halves: Sequence[Request]) -> None:
        """Preempt requests and move them to the queue's head, after queued partners of running requests."""
        for request in halves:
            if request.status is RUNNING:
                self.running.remove(request)
                self._preempt_request(request, time.monotonic())
            else:  # the waiting member of a pair moves along with its partner
                put_first(self.waiting, request)
        put_first(self.waiting, *self.planner.awaited(self.running))

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        state = self.table[request.request_id]
        self.stats.values.live_rows_recomputed_total += request.num_computed_tokens if state.is_live else 0
        super()._preempt_request(request, timestamp, drop_stale_output)
        self._sampled.note_preempted(state)
        self.stats.count_preemption(state)

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """Return the number of rows of `request` to compute in this step (vLLM's hook)."""
        grant = self._grants.get(request.request_id)
        if grant is not None:  # the request was running when this step was planned
            return grant if grant <= num_new_tokens else 0  # a multi-token step is never split
        if (
            not self._admits
            or not self.planner.has_slot(request.request_id, self.running, self.max_num_active_reqs)
            or not self.shares.has_room(request, self.running)
            or not self.blocks.has_room(request)
        ):
            return 0  # ends vLLM's loop, so that no later request overtakes `request`
        wanted = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        if self.table.is_bound(request.request_id):  # the request samples once both requests of the pair run
            wanted = min(wanted, request.num_tokens - num_computed_tokens - 1)
        return wanted

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[KVCacheBlocks, int, int, bool]:
        """Return vLLM's prefix-cache hit, without rows that have to be computed even if they are cached.

        These are rows whose hidden states a speaker, MTP modules or a CFG pair need.
        """
        blocks, num_tokens, boundary, diverged = super()._get_local_prefix_cache_hit(request)
        most = self.table[request.request_id].max_cached_rows // self.block_size * self.block_size
        if num_tokens > most:
            num_tokens = most
            blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, num_tokens)
        if num_tokens > 0 and self.table.must_compute_more(request, request.num_tokens - num_tokens):
            num_tokens -= self.block_size
            blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, num_tokens)
        return blocks, num_tokens, boundary, diverged

    def add_request(self, request: Request) -> None:
        """Queue a request, followed by its unconditional request if the reply begins with guided audio."""
        stamp(Hop.ENGINE_ACCEPTS)
        if self.texts.absorb_updates(request):
            return  # more text or audio for requests in progress is also sent as a request
        state = self.table.add(request)
        super().add_request(request)
        if state.reply.segment is not AUDIO or state.pair is None:
            return
        if self.guidance.begins(state, self.current_step) and state.pair.begin(state):
            self._add_unconditional(state)

    def _add_unconditional(self, state: RequestState) -> Request:
        request = self.table.add_unconditional(state)
        super().add_request(request)
        return request

    def _drop_unconditional(self, states: Sequence[RequestState]) -> None:
        if states:
            super().finish_requests([self.table.drop_unconditional(state) for state in states], ABORTED)

    def finish_requests(self, request_ids: Any, finished_status: RequestStatus) -> list[Request]:
        """Finish requests (None: all) and their CFG partners; return the finished requests known to the front end."""
        if request_ids is None:
            request_ids = self.requests
        ids = self.table.with_partners([request_ids] if isinstance(request_ids, str) else request_ids)
        finished = super().finish_requests(ids, finished_status)
        self.table.remove(*ids)
        if finished:  # there may be no further step to publish the change
            self.stats.report(self.running, len(self.waiting))
        return [request for request in finished if not request.request_id.endswith(UNCONDITIONAL_SUFFIX)]

    def has_requests(self) -> bool:
        """Return True if there are requests, after waiting until the next step is due if more requests may join it.

        vLLM's loop calls this before it reads new requests, so requests that arrive during the wait join that step.
        """
        if len(self.running) < self.max_num_active_reqs:
            self.submission.wait(len(self.running))
        return super().has_requests()

    def has_unfinished_requests(self) -> bool:
        """Return True if there are requests and not all replies are blocked on text or audio."""
        return super().has_unfinished_requests() and not self.texts.all_held

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Process the output of a step: record the sampled rows and return the outputs for the front ends."""
        stamp(Hop.STEP_ENDS)
        self._scheduled = scheduler_output.num_scheduled_tokens
        self._sampled.extract(model_runner_output)
        others = self.unconditional.extract(model_runner_output, self._sampled.codes, self._scheduled)
        scheduler_output.num_scheduled_tokens = others
        receivers = self._sampled.receivers(self.table)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        scheduler_output.num_scheduled_tokens = self._scheduled
        for state in receivers:
            self._sampled.send_tensors(outputs, state)
        for client in outputs.values():
            client.outputs = [
                output for output in client.outputs if output.finish_reason is None or self._complete(output)
            ]
        self._sampled.send_preempted(outputs)
        self.stats.end_step(scheduler_output.total_num_scheduled_tokens, self.running, len(self.waiting))
        return outputs

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        """Record the sampled rows of one request, and return the ids to send now, and True if it has ended.

        Codes are recorded before vLLM appends the tokens, because the block hashes computed at that point cover both.
        """
        state = self.table.get(request.request_id)
        codes = self._sampled.codes.get(request.request_id)
        if state is None or codes is None:
            return super()._update_request_with_output(request, new_token_ids, is_stale)
        first = request.num_tokens
        state.history.put(first, codes)
        token_ids, stopped = super()._update_request_with_output(request, new_token_ids, is_stale)
        if state.is_unconditional:
            return [], stopped  # vLLM creates no output for an empty list
        marks = []
        # rows after the end are dropped
        for position, (token_id, values) in enumerate(
            zip(token_ids, self._sampled.state[request.request_id], strict=False), first + 1
        ):
            segment = state.reply.segment
            state.reply.move(position, values)
            marks.append(self._follow(state, segment, token_id))
        if state.track is not None:
            self.texts.note_generated(state)
        return self._sampled.push(state, marks, token_ids, stopped or state.waits_for_text), stopped

    def _follow(self, state: RequestState, segment: Segment, token_id: int) -> int:
        """Begin or end guidance after the newest row of a reply, and return the row's guidance mark."""
        if segment is TEXT and state.reply.audio_start >= 0:
            self._audio_starts[state.request.request_id] = state.reply.audio_start
            if state.pair is not None and self.guidance.begins(state, self.current_step):
                self.begin_unconditional(state)
        elif segment not in (TEXT, TRANSITION) and state.asks_for_guidance:
            is_guided = state.partner_id in self._scheduled
            if state.pair is not None and state.pair.follows_rows:
                return state.pair.follow(state, token_id, is_guided, self)
            return state.note_guidance(is_guided)
        return NO_CHANGE

    def begin_unconditional(self, state: RequestState) -> None:
        """Create the unconditional request of `state`, and queue it so that it is admitted next."""
        put_first_after(self.waiting, self._add_unconditional(state), state.request)

    def end_unconditional(self, state: RequestState) -> None:
        """Remove the unconditional request of `state` before the next step."""
        self._ended.append(state.request.request_id)

    def _complete(self, output: EngineCoreOutput) -> bool:
        """Append the trailer to a finished request's output, or return False if no client receives that output."""
        request_id = output.request_id
        if request_id.endswith(UNCONDITIONAL_SUFFIX):
            self.table.remove(request_id)
            return False
        state = self.table.get(request_id)
        ids = self.table.with_partners([request_id])
        if state is not None:
            output.new_token_ids = [*output.new_token_ids, *state.trailer()]
        super().finish_requests(ids - {request_id}, ABORTED)
        self.table.remove(*ids)
        return True


class SpeechScheduler(PairedScheduling, Scheduler):
    """Synchronous scheduler: one step at a time."""


class SpeechAsyncScheduler(PairedScheduling, AsyncScheduler):
    """Asynchronous scheduler: the next step is scheduled while one is in flight."""

    _num_in_advance = 1
