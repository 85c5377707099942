"""Texts that come while they are spoken: a row whose word has not come is held, and with it the reply.

Word i is part of row i, so the row cannot be read before it is known. A held reply is granted no step. It keeps its KV
and its place until somebody who could run needs them; then it gives way, and does not come back without its word.
"""

import time
from collections.abc import Callable, Iterable

from vllm.v1.core.sched.output import CachedRequestData
from vllm.v1.request import Request

from stretto.engine.request.new_request import SpeechCachedRequests, TextNews
from stretto.engine.request.track import TextUpdate
from stretto.engine.scheduling.kv_blocks import KvBlocks
from stretto.engine.scheduling.planner import PairPlanner
from stretto.engine.scheduling.request_state import RequestState
from stretto.engine.scheduling.request_table import RequestTable


class HeldReplies:
    """Follows the open texts of all requests; `held_s` counts the time in which a reply was held."""

    def __init__(
        self,
        table: RequestTable,
        planner: PairPlanner,
        blocks: KvBlocks,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._table, self._planner, self._blocks, self._clock = table, planner, blocks, clock
        self._open: dict[str, RequestState] = {}
        self._news: dict[str, TextNews] = {}
        self._since: dict[str, float] = {}  # when each of the held replies came to be held
        self.held_s = 0.0

    def add(self, state: RequestState) -> None:
        """A request has arrived."""
        if state.track is not None and state.track.is_open:
            self._open[state.request.request_id] = state

    def remove(self, request_id: str) -> None:
        """A request has ended."""
        for some in (self._open, self._news, self._since):
            some.pop(request_id, None)

    def take(self, request: Request) -> bool:
        """Whether `request` is no request but the next words of one; of one that has ended they are not for anybody."""
        assert request.sampling_params is not None
        update = TextUpdate.from_extra_args(request.sampling_params.extra_args)
        if update is None:
            return False
        state = self._open.get(request.request_id)
        if state is not None:
            self._extend(state, update)
        return True

    def _extend(self, state: RequestState, update: TextUpdate) -> None:
        track, request = state.track, state.request
        assert track is not None
        told = self._news.get(request.request_id, TextNews(track.end, [], None))
        track.ids += update.ids
        track.is_open = not update.is_last
        min_rows = max(state.params.sampling.audio.min_rows, track.min_frames) if update.is_last else None
        self._news[request.request_id] = TextNews(told.first_row, told.ids + update.ids, min_rows)
        if not self.is_held(request):
            self._end_hold(state)
        if update.is_last:
            del self._open[request.request_id]
            self._table.revision += 1
        if request._block_hasher is not None:
            request.update_block_hashes()

    def note_said(self, state: RequestState) -> None:
        """A request has said a row, which it may now wait to read."""
        if self.is_held(state.request):
            self._since.setdefault(state.request.request_id, self._clock())

    def _end_hold(self, state: RequestState) -> None:
        since = self._since.pop(state.request.request_id, None)
        if since is not None:
            held_s = self._clock() - since
            state.held_s += held_s
            self.held_s += held_s

    def tell(self, requests: CachedRequestData) -> CachedRequestData:
        """What the worker is told of the running requests: vLLM's record, with what has come of their texts."""
        if not self._news:
            return requests
        news, self._news = self._news, {}
        return SpeechCachedRequests.of(requests, news)

    def is_held(self, request: Request) -> bool:
        """Whether a request has said a row whose word has not come."""
        state = self._open.get(request.request_id)
        return state is not None and state.waits_for_words

    def held(self, requests: Iterable[Request]) -> list[Request]:
        """Those of `requests` that are held, in order."""
        return [request for request in requests if self.is_held(request)] if self._open else []

    @property
    def num_held(self) -> int:
        """How many replies are held."""
        return len(self._since)

    @property
    def hold_all(self) -> bool:
        """Whether there are requests and all of them are held: nothing is to be done before a word comes."""
        return len(self._since) == len(self._table) > 0

    def giving_way(self, waiting: Iterable[Request], running: list[Request], num_slots: int) -> list[Request]:
        """The held reply that makes room for the first who waits for room and not for words, if one must."""
        held = self.held(running)
        first = next((request for request in waiting if not self.is_held(request)), None) if held else None
        return [] if first is None or self._has_room(first, running, num_slots) else held[-1:]

    def _has_room(self, request: Request, running: list[Request], num_slots: int) -> bool:
        """Whether a request finds a run slot, and free blocks for what it has."""
        pair = self._table[request.request_id].pair
        needed = self._blocks.needed(request.num_tokens) * (1 if pair is None else 2)
        return needed <= self._blocks.num_free() and self._planner.has_slot(request.request_id, running, num_slots)
