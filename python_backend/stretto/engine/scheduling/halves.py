"""Unconditional halves in the scheduler: how one comes, where it waits, and how it takes its tokens."""

from typing import TYPE_CHECKING, Any

from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from stretto.engine.request.family import family_of
from stretto.engine.request.rules import SegmentRules
from stretto.engine.scheduling.block_hash import row_block_hasher
from stretto.engine.scheduling.replies import Reply, ReplyTable

if TYPE_CHECKING:  # the mixin goes over either of vLLM's schedulers; a type checker reads it over the simpler one
    from vllm.v1.core.sched.scheduler import Scheduler
else:
    Scheduler = object

RUNNING = RequestStatus.RUNNING  # asked for per row, and Python 3.11 is slow to find a member by its name


class UnconditionalHalves(Scheduler):
    """Holds the table of replies and the halves of guided ones. The lowest of the mixins over vLLM's schedulers."""

    _placeholders = 0  # sampled tokens that a step counts in advance

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        family = family_of(self.vllm_config.model_config.hf_config)
        self.replies = ReplyTable(SegmentRules(family, self.max_model_len))
        # The running requests as they were when the last step was planned, if they need no plan; else None.
        self._steady: list[Request] | None = None
        # Of the step whose output is being taken: who was in it, the codes of those who sampled, and who was cut.
        self._scheduled: dict[str, int] = {}
        self._codes_of: dict[str, list[int]] = {}
        self._cut: set[str] = set()

    def _begin_guidance(self, reply: Reply) -> Request | None:
        """Create the unconditional half of `reply`, which is at its audio segment, unless it begins without."""
        return self._add_unconditional(reply)

    def _put_first(self, request: Request) -> None:
        """Put a request that waits at the head of the queue."""
        self.waiting.remove_request(request)
        self.waiting.prepend_request(request)

    def _queue_half(self, half: Request, partner: Request) -> None:
        """Put a new half ahead of all who wait for a place; behind its partner if that was preempted as it sampled."""
        self.waiting.remove_request(half)
        ahead = list[Request]()
        while partner.status == RequestStatus.PREEMPTED and partner not in ahead:
            ahead.append(self.waiting.pop_request())
        for request in (half, *reversed(ahead)):
            self.waiting.prepend_request(request)

    def _add_unconditional(self, reply: Reply) -> Request:
        self._steady = None
        request = self.replies.add_unconditional(reply)
        self._identify_blocks(self.replies[request.request_id], reply.request._block_hasher is not None)
        super().add_request(request)
        return request

    def _identify_blocks(self, reply: Reply, is_caching: bool) -> None:
        if is_caching:
            request = reply.request
            request._block_hasher = row_block_hasher(self.hash_block_size, reply.history.rows, reply.params.audios)
            request.block_hashes.clear()
            request.update_block_hashes()

    def _take_halves(self, output: ModelRunnerOutput) -> dict[str, int]:
        """Give unconditional halves their tokens; returns what the step has computed of all other requests.

        vLLM's loop sees whether a row is the last and makes of it what a client gets. A half ends with its partner, and
        nothing of it leaves the engine; that loop is left with those that were preempted with this token on its way.
        """
        if not self._codes_of:
            return self._scheduled
        others = dict(self._scheduled)
        for request_id, token_ids in zip(output.req_ids, output.sampled_token_ids, strict=True):
            reply = self.replies.get(request_id)
            if reply is None or not reply.is_unconditional or not token_ids:
                continue
            request = reply.request
            if request.status is RUNNING and request.num_stale_output_tokens == 0:
                request.num_in_flight_tokens -= others.pop(request_id)
                reply.history.put(request.num_tokens, self._codes_of[request_id])
                self._append(request, token_ids)
        return others

    def _append(self, request: Request, token_ids: list[int]) -> None:
        """Take the token of a half's new row as vLLM does, but do not ask whether it is the last."""
        request.append_output_token_ids(token_ids)
