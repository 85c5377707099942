"""KV shares: how much of the cache requests that listen and requests that speak may take up each. Off by default.

A queue that is served in order lets many long prompts of one kind keep everybody else waiting. With shares, a request
is passed over while its class is full, and only then: within a class the order stays.
"""

from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

from stretto.engine.scheduling.planning import StepPlanning
from stretto.streams.segment import Segment

KEY = "kv_share"
UNDERSTANDING, GENERATION = "understanding", "generation"


class KvSharing(StepPlanning):
    """Admits a waiting request only while what its class holds and what it needs fit in the class's share."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        options = self.vllm_config.additional_config
        shares = (options.get(KEY) if isinstance(options, dict) else None) or {}
        num_blocks = self.kv_cache_config.num_blocks - 1  # vLLM keeps one for itself
        self._limits = {name: int(share * num_blocks) for name, share in shares.items()}

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """One step, in which requests of a class that is full are passed over."""
        if not self._limits:
            return super().schedule(throttle_prefills)
        queued = list(self.waiting)
        passed_over = self._pass_over(queued)
        self.waiting.remove_requests(passed_over)
        output = super().schedule(throttle_prefills)
        self._put_back(queued, passed_over)
        return output

    def _pass_over(self, queued: Iterable[Request]) -> list[Request]:
        """The requests in the queue whose class has no room for the first of them."""
        has_room: dict[str, bool] = {}
        passed_over = []
        for request in queued:
            if self._is_awaited(request):
                continue
            name = self._class_of(request)
            if name not in has_room:
                has_room[name] = self._has_share(request)
            if not has_room[name]:
                passed_over.append(request)
        return passed_over

    def _put_back(self, queued: list[Request], passed_over: list[Request]) -> None:
        """Bring the queue into its order again, what has come into it since at its head."""
        left, old = list(self.waiting), set(queued)
        stays = {*left, *passed_over}
        self.waiting.remove_requests(left)
        for request in [each for each in left if each not in old] + [each for each in queued if each in stays]:
            self.waiting.add_request(request)

    def _is_awaited(self, request: Request) -> bool:
        """Whether `request` is a half whose partner runs already, and counts for both."""
        partner = self.replies.partner(request.request_id)
        return partner is not None and any(other.request_id == partner for other in self.running)

    def _has_share(self, request: Request) -> bool:
        """Whether the class of `request` has room for it; the first of a class always finds room."""
        if not self._limits or self._is_awaited(request):
            return True
        name = self._class_of(request)
        limit = self._limits.get(name)
        held = sum(self._blocks_of(other) for other in self.running if self._class_of(other) == name)
        return limit is None or held == 0 or held + self._blocks_of(request) <= limit

    def _class_of(self, request: Request) -> str:
        speaks = Segment.AUDIO in self.replies[request.request_id].tracker.task.segments
        return GENERATION if speaks else UNDERSTANDING

    def _blocks_of(self, request: Request) -> int:
        """Blocks for the rows that `request` has; the conditional half counts for its pair."""
        reply = self.replies[request.request_id]
        if reply.params.is_unconditional:
            return 0
        return -(-(request.num_tokens + 1) // self.block_size) * (1 if reply.pair is None else 2)
