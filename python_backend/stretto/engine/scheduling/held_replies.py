"""Replies that are blocked until more text or audio arrives, and functions that reorder vLLM's waiting queue."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
from vllm.v1.core.sched.output import CachedRequestData
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request, RequestStatus

from stretto.engine.protocol import partner_of
from stretto.engine.reply_rules import TextUpdate, updates_in
from stretto.engine.scheduling.planner import KvBlocks, PairPlanner
from stretto.engine.scheduling.request_state import RequestState
from stretto.engine.scheduling.request_table import RequestTable
from stretto.engine.step_records import NewText, SpeechCachedRequests

NOTHING_SKIPPED = nullcontext()  # shared by the many steps that skip no request


def put_first(queue: RequestQueue, *requests: Request) -> None:
    """Move waiting requests to the head of the queue, in the given order."""
    for request in reversed(requests):
        queue.remove_request(request)
        queue.prepend_request(request)


def put_first_after(queue: RequestQueue, half: Request, partner: Request) -> None:
    """Move a new unconditional request to the queue's head, or after its partner if that has just been preempted."""
    queue.remove_request(half)
    ahead = list[Request]()
    while partner.status == RequestStatus.PREEMPTED and partner not in ahead:
        ahead.append(queue.pop_request())
    for request in (half, *reversed(ahead)):
        queue.prepend_request(request)


def skipping(queue: RequestQueue, *groups: Sequence[Request]) -> AbstractContextManager[None]:
    """Return a context manager that removes the requests in `groups` from the queue and restores them on exit."""
    requests = [request for group in groups for request in group]
    return _without(queue, requests) if requests else NOTHING_SKIPPED


@contextmanager
def _without(queue: RequestQueue, requests: Sequence[Request]) -> Iterator[None]:
    before = list(queue)
    queue.remove_requests(requests)
    yield
    left = list(queue)
    old = set(before)
    stay = {*left, *requests}
    queue.remove_requests(left)
    for request in [queued for queued in left if queued not in old] + [queued for queued in before if queued in stay]:
        queue.add_request(request)


class HeldReplies:
    """Requests whose streamed text or audio is incomplete, and replies that are blocked until more of it arrives.

    Replies that are blocked on streamed text are the first to lose their slots and KV blocks. Live sessions keep
    theirs unless `keeps_sessions` is False (see `KvBlocks.sessions`).

    Attributes:
        held_s: Total time that replies were blocked on text, in seconds.
    """

    def __init__(
        self,
        table: RequestTable,
        planner: PairPlanner,
        blocks: KvBlocks,
        clock: Callable[[], float] = time.monotonic,
        keeps_sessions: bool = True,
    ):
        self._table = table
        self._planner = planner
        self._blocks = blocks
        self._clock = clock
        self.keeps_sessions = keeps_sessions
        self._open: dict[str, RequestState] = {}
        self._new_text: dict[str, NewText] = {}
        self._since: dict[str, float] = {}  # time at which each blocked reply became blocked
        self.held_s = 0.0

    def add(self, state: RequestState) -> None:
        """Track a newly arrived request if its text or audio is still being streamed."""
        if state.track is not None and state.track.is_open:
            self._open[state.request.request_id] = state
            if state.is_live and self.keeps_sessions:
                self._blocks.sessions.add(state.request.request_id)

    def remove(self, request_id: str) -> None:
        """Stop tracking a request that has ended."""
        for some in (self._open, self._new_text, self._since):
            some.pop(request_id, None)
        self._blocks.sessions.discard(request_id)

    def absorb_updates(self, request: Request) -> bool:
        """Apply the text and audio in `request`, or return False if it is an ordinary request.

        Updates for requests that have ended are dropped.
        """
        assert request.sampling_params is not None
        updates = updates_in(request.sampling_params.extra_args)
        for update in updates or ():
            state = self._open.get(update.request_id)
            if state is not None:
                self._extend(state, update)
        return updates is not None

    def _extend(self, state: RequestState, update: TextUpdate) -> None:
        track = state.track
        request = state.request
        assert track is not None
        entries = track.extend(update.ids, update.is_last)
        before = self._new_text.get(request.request_id)
        if before is not None:
            entries = np.concatenate([before.entries, entries])
        limits = track.limits(state.prompt.sampling) if update.is_last else {}
        self._new_text[request.request_id] = NewText(entries, limits)
        if not self.is_held(request):
            self._end_hold(state)
        if update.is_last:
            del self._open[request.request_id]
            self._table.revision += 1
        if request._block_hasher is not None:
            request.update_block_hashes()

    def note_generated(self, state: RequestState) -> None:
        """Record the time if a request has become blocked after generating a row."""
        if self.is_held(state.request):
            self._since.setdefault(state.request.request_id, self._clock())

    def _end_hold(self, state: RequestState) -> None:
        since = self._since.pop(state.request.request_id, None)
        if since is not None:
            held_s = self._clock() - since
            state.held_s += held_s
            if not state.is_live:
                self.held_s += held_s

    def attach_news(self, requests: CachedRequestData, audio_starts: Mapping[str, int]) -> CachedRequestData:
        """Add the text that has arrived since the last step, and `audio_starts`, to vLLM's record of the requests."""
        if not self._new_text and not audio_starts:
            return requests
        new_text = self._new_text
        self._new_text = {}
        return SpeechCachedRequests.extending(requests, new_text, audio_starts)

    def is_held(self, request: Request) -> bool:
        """Return True if the text or audio for the newest row of a request or its CFG partner has not arrived."""
        state = self._open.get(request.request_id) or self._open.get(partner_of(request.request_id))
        return state is not None and state.waits_for_text

    def held(self, requests: Iterable[Request]) -> list[Request]:
        """Return the blocked requests among `requests`, in order."""
        return [request for request in requests if self.is_held(request)] if self._open else []

    @property
    def num_held(self) -> int:
        """Number of replies that are blocked on text."""
        return len(self._since) - self.num_silent

    @property
    def num_silent(self) -> int:
        """Number of live sessions that are blocked on audio and keep their slots and KV blocks."""
        return len(self._since.keys() & self._blocks.sessions)

    @property
    def all_held(self) -> bool:
        """True if there are requests and all of them are blocked, so a step has nothing to compute."""
        if not self._since:
            return False
        pairs = (self._table[request_id].pair for request_id in self._since)
        num_partners = sum(pair is not None and bool(pair.unconditional) for pair in pairs)
        return len(self._since) + num_partners == len(self._table)

    def to_preempt(self, waiting: Iterable[Request], running: list[Request], num_slots: int) -> list[Request]:
        """Return the running request, or pair, to preempt so that a queued one can run (empty if there is none).

        This is the youngest blocked reply that is not a live session. It is preempted if the first queued request that
        is not blocked lacks a run slot or KV blocks.
        """
        held = [request for request in self.held(running) if request.request_id not in self._blocks.sessions]
        first = next((request for request in waiting if not self.is_held(request)), None) if held else None
        return (
            []
            if first is None or self._planner.has_room(first, running, num_slots)
            else self._planner.next_to_preempt(running)
        )
