"""From sampled rows to what leaves the engine (see `wire.py`): a part of the scheduler."""

from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from stretto.engine.request.pairs import NOT_YET, UNCONDITIONAL_SUFFIX
from stretto.engine.request.wire import GUIDANCE_OFF, GUIDANCE_ON, Trailer
from stretto.engine.scheduling.halves import UnconditionalHalves
from stretto.engine.scheduling.replies import Reply
from stretto.streams.segment import Segment


class ReplyOutputs(UnconditionalHalves):
    """Keeps the table of replies in step with vLLM's requests, and sends their rows."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._num_codes = self.replies.rules.family.layout.num_output_streams - 1

    def add_request(self, request: Request) -> None:
        """Put a request in the queue; where its reply begins with audio, the unconditional half behind it."""
        reply = self.replies.add(request)
        self._identify_blocks(reply, is_caching=request._block_hasher is not None)
        super().add_request(request)
        if reply.pair is not None and reply.tracker.segment is Segment.AUDIO:
            self._begin_guidance(reply)

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
        """Let vLLM take the step's tokens, each with its codes, and send whole rows to whom they are for."""
        self._scheduled = scheduler_output.num_scheduled_tokens
        self._codes_of, self._cut = _take_codes(model_runner_output)
        scheduler_output.num_scheduled_tokens = self._take_halves(model_runner_output)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        scheduler_output.num_scheduled_tokens = self._scheduled
        for core_outputs in outputs.values():
            core_outputs.outputs = [
                output for output in core_outputs.outputs if output.finish_reason is None or self._complete(output)
            ]
        return outputs

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        """Take the codes before vLLM takes the token, as the block hash of a row covers both; then send the whole row.

        Of an unconditional half nothing is sent, and vLLM makes no output for it.
        """
        request_id = request.request_id
        reply, codes = self.replies.get(request_id), self._codes_of.get(request_id)
        if reply is None or codes is None:
            return super()._update_request_with_output(request, new_token_ids, is_stale)
        reply.history.put(request.num_tokens, codes)
        (token_id,), stopped = super()._update_request_with_output(request, new_token_ids, is_stale)
        if reply.is_unconditional:
            return [], stopped
        reply.was_cut |= request_id in self._cut
        mark = self._follow(reply, token_id)
        return [*mark, token_id, *codes[: self._num_codes]], stopped

    def _complete(self, output: EngineCoreOutput) -> bool:
        """Put the trailer behind the last row, which `output` is; whether it is for the client at all."""
        if output.request_id.endswith(UNCONDITIONAL_SUFFIX):
            self.replies.remove(output.request_id)
            return False
        reply = self.replies.get(output.request_id)
        if reply is not None:
            output.new_token_ids = [*output.new_token_ids, *self._end(reply)]
        return True

    def _follow(self, reply: Reply, token_id: int) -> tuple[int, ...]:
        """Move `reply` on past its newest row; returns the mark that goes before the row, if any."""
        tracker = reply.tracker
        was_known = tracker.audio_start >= 0
        segment = tracker.push(token_id)
        if not was_known and tracker.audio_start >= 0 and reply.pair is not None:
            other = self._begin_guidance(reply)
            if other is not None:
                self._queue_half(other, reply.request)
        if not was_known or not reply.asks_for_guidance or segment is Segment.TRANSITION:
            return ()
        is_guided = reply.partner_id in self._scheduled
        if not is_guided or reply.limit != NOT_YET:
            is_due = reply.request.num_output_tokens <= reply.limit
            assert is_guided == is_due or reply.is_adaptive, f"{reply.request.request_id}: guided {is_guided}"
        if is_guided == reply.is_guided:
            return ()
        reply.is_guided = is_guided
        reply.turns.append(tracker.position - 1 - tracker.audio_start)
        return (GUIDANCE_ON if is_guided else GUIDANCE_OFF,)

    def _end(self, reply: Reply) -> Trailer:
        request = reply.request
        partner = self.replies.partner(request.request_id)
        if partner in self.requests:
            self.finish_requests(partner, RequestStatus.FINISHED_ABORTED)
        self.replies.remove(request.request_id)
        assert reply.queue_s is not None
        queue_us = round(1e6 * reply.queue_s)
        return Trailer(reply.num_guided_frames, request.num_preemptions, int(reply.was_cut), queue_us)


def _take_codes(output: ModelRunnerOutput) -> tuple[dict[str, list[int]], set[str]]:
    """The codes, streams 1 ..., of each request's row, and whose segment a limit closed there.

    They come as log-probabilities, which vLLM must not see.
    """
    if output.logprobs is None:
        return {}, set()
    logprobs, output.logprobs = output.logprobs, None
    cut = {output.req_ids[index] for index in logprobs.sampled_token_ranks.nonzero()[0]}
    return dict(zip(output.req_ids, logprobs.logprob_token_ids.tolist(), strict=True)), cut
