"""From sampled rows to what leaves the engine (see `wire.py`): the lower half of the scheduler mixin."""

from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from python_backend.engine.block_hash import row_block_hasher
from python_backend.engine.family import family_of
from python_backend.engine.replies import UNCONDITIONAL_SUFFIX, Reply, ReplyTable, partner_of
from python_backend.engine.rules import SegmentRules
from python_backend.engine.wire import GUIDANCE_OFF, GUIDANCE_ON, Trailer
from python_backend.streams.segment import Segment

if TYPE_CHECKING:  # the mixin goes over either of vLLM's schedulers; a type checker reads it over the simpler one
    from vllm.v1.core.sched.scheduler import Scheduler
else:
    Scheduler = object


class ReplyOutputs(Scheduler):
    """Keeps the table of replies in step with vLLM's requests. A mixin over vLLM's schedulers."""

    _placeholders = 0  # sampled tokens that a step counts in advance

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        family = family_of(self.vllm_config.model_config.hf_config)
        self.replies = ReplyTable(SegmentRules(family, self.max_model_len))
        self._num_streams = family.layout.num_output_streams

    def add_request(self, request: Request) -> None:
        """Put a request in the queue; where its reply begins with audio, the unconditional half behind it."""
        reply = self.replies.add(request)
        self._identify_blocks(reply, is_caching=request._block_hasher is not None)
        super().add_request(request)
        if reply.pair is not None and reply.tracker.segment is Segment.AUDIO:
            self._begin_guidance(reply)

    def _begin_guidance(self, reply: Reply) -> Request | None:
        """Create the unconditional half of `reply`, which is at its audio segment, unless it begins without."""
        return self._add_unconditional(reply)

    def _put_first(self, request: Request) -> None:
        """Put a request that waits at the head of the queue."""
        self.waiting.remove_request(request)
        self.waiting.prepend_request(request)

    def _add_unconditional(self, reply: Reply) -> Request:
        request = self.replies.add_unconditional(reply)
        self._identify_blocks(self.replies[request.request_id], reply.request._block_hasher is not None)
        super().add_request(request)
        return request

    def _identify_blocks(self, reply: Reply, is_caching: bool) -> None:
        if is_caching:
            request = reply.request
            request._block_hasher = row_block_hasher(self.hash_block_size, reply.history.rows)
            request.block_hashes.clear()
            request.update_block_hashes()

    def finish_requests(self, request_ids: Any, finished_status: RequestStatus) -> list[Request]:
        """Finish requests and, with each, the other half of its pair."""
        if request_ids is None:
            ids = set(self.requests)
        else:
            ids = {request_ids} if isinstance(request_ids, str) else set(request_ids)
            ids |= {partner for request_id in ids if (partner := self.replies.partner(request_id)) is not None}
        finished = super().finish_requests(ids, finished_status)
        for request_id in ids:
            self.replies.remove(request_id)
        return [request for request in finished if not request.request_id.endswith(UNCONDITIONAL_SUFFIX)]

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Take the step's codes into the history, let vLLM take its tokens, and send whole rows."""
        self._append_codes(scheduler_output, model_runner_output)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for core_outputs in outputs.values():
            core_outputs.outputs = [
                output for output in core_outputs.outputs if self._complete(output, scheduler_output)
            ]
        return outputs

    def _append_codes(self, scheduler_output: SchedulerOutput, output: ModelRunnerOutput) -> None:
        """Before vLLM appends a token, so that the block hash of its row finds the row's codes."""
        if output.logprobs is None:
            return
        codes, output.logprobs = output.logprobs.logprob_token_ids, None
        for request_id in scheduler_output.num_scheduled_tokens:
            reply = self.replies.get(request_id)
            index = output.req_id_to_index[request_id]
            if reply is None or not output.sampled_token_ids[index]:
                continue
            reply.history.truncate(reply.request.num_tokens)  # output that vLLM dropped left its codes behind
            reply.history.append(codes[index])

    def _complete(self, output: EngineCoreOutput, scheduler_output: SchedulerOutput) -> bool:
        """Make `output` a whole row; whether it is for the client at all."""
        if output.request_id.endswith(UNCONDITIONAL_SUFFIX):
            if output.finish_reason is not None:
                self.replies.remove(output.request_id)
            return False
        reply = self.replies.get(output.request_id)
        if reply is None:
            return True
        if output.new_token_ids:
            (token_id,) = output.new_token_ids
            mark = self._follow(reply, token_id, scheduler_output)
            output.new_token_ids = [*mark, token_id, *reply.row()[: self._num_streams - 1].tolist()]
        if output.finish_reason is not None:
            output.new_token_ids = [*output.new_token_ids, *self._end(reply)]
        return True

    def _follow(self, reply: Reply, token_id: int, scheduler_output: SchedulerOutput) -> tuple[int, ...]:
        """Move `reply` on past its newest row; returns the mark that goes before the row, if any."""
        tracker, sampling = reply.tracker, reply.params.sampling
        was_known = tracker.audio_start >= 0
        segment = tracker.push(token_id)
        if reply.pair is not None and not was_known and tracker.audio_start >= 0:
            other = self._begin_guidance(reply)
            if other is not None:
                self._put_first(other)  # its partner runs already: ahead of all who wait for a slot
        if not reply.params.is_guided or segment not in (Segment.AUDIO, Segment.DRAIN):
            return ()
        is_guided = partner_of(reply.request.request_id) in scheduler_output.num_scheduled_tokens
        is_due = reply.request.num_output_tokens <= reply.limit
        assert is_guided == is_due or sampling.policy == "adaptive", f"{reply.request.request_id}: guided {is_guided}"
        reply.num_guided_frames += is_guided and segment is Segment.AUDIO and tracker.audio_end < 0
        if is_guided == reply.is_guided:
            return ()
        reply.is_guided = is_guided
        return (GUIDANCE_ON if is_guided else GUIDANCE_OFF,)

    def _end(self, reply: Reply) -> Trailer:
        request = reply.request
        partner = self.replies.partner(request.request_id)
        if partner in self.requests:
            self.finish_requests(partner, RequestStatus.FINISHED_ABORTED)
        self.replies.remove(request.request_id)
        assert reply.queue_s is not None
        return Trailer(reply.num_guided_frames, request.num_preemptions, round(1e6 * reply.queue_s))
