"""Table of the scheduler's requests, including the unconditional requests that it creates."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from vllm.v1.request import Request

from stretto.engine.request.pairs import partner_of
from stretto.engine.request.params import SpeechParams
from stretto.engine.request.rules import SegmentRules
from stretto.engine.request.tracker import SegmentTracker
from stretto.engine.scheduling.block_hash import row_block_hasher
from stretto.engine.scheduling.history import RowHistory
from stretto.engine.scheduling.request_state import GuidancePair, RequestState
from stretto.engine.scheduling.unconditional import unconditional_context, unconditional_track
from stretto.streams.segment import Segment


class Follower(Protocol):
    """Observer of the request table that keeps its own state per request."""

    def add(self, state: RequestState) -> None:
        """Record a request that has arrived."""

    def remove(self, request_id: str) -> None:
        """Forget a request, or an unconditional request, that has ended."""


class RequestTable(dict[str, RequestState]):
    """State of every request by id; entries are added and removed together with vLLM's requests.

    Attributes:
        followers: Observers notified of added and removed requests.
        revision: Counter that increases whenever a CFG pair gains or loses its unconditional request or starts to wait
            for one.
    """

    def __init__(self, rules: SegmentRules, hash_block_size: int):
        super().__init__()
        self.rules = rules
        self.followers: Sequence[Follower] = ()
        self.revision = 0
        self._hash_block_size = hash_block_size

    def add(self, request: Request) -> RequestState:
        """Add a request that has just arrived and return its state."""
        family = self.rules.family
        assert request.sampling_params is not None
        extra_args = request.sampling_params.extra_args
        assert extra_args is not None, f"{request.request_id} did not come through SpeechLLM"
        params = SpeechParams.from_extra_args(extra_args, family.layout.num_input_streams)
        task = family.task(params.task)
        tracker = SegmentTracker(self.rules, task, request.num_prompt_tokens)
        is_guided = params.is_guided and Segment.AUDIO in task.segments
        pair = GuidancePair(request.request_id) if is_guided else None
        track = self.rules.track(request.num_prompt_tokens, params.track, params.is_open)
        history = RowHistory(params.codes[: request.num_prompt_tokens], track)
        state = RequestState(request, params, history, tracker, pair, is_guided=is_guided, track=track)
        self._put(state, is_caching=request._block_hasher is not None)
        for follower in self.followers:
            follower.add(state)
        return state

    def _put(self, state: RequestState, is_caching: bool) -> None:
        request = state.request
        self[request.request_id] = state
        if is_caching:  # vLLM hashes only the ids of stream 0
            rows_of, audios, is_read = state.history.rows, state.params.audios, state.is_read_by_modules
            request._block_hasher = row_block_hasher(self._hash_block_size, rows_of, audios, is_read, state.track)
            request.block_hashes.clear()
            request.update_block_hashes()

    def remove(self, *request_ids: str) -> None:
        """Remove requests that have ended."""
        for request_id in request_ids:
            self.pop(request_id, None)
            for follower in self.followers:
                follower.remove(request_id)

    def partner(self, request_id: str) -> str | None:
        """Return the id of the other request of the CFG pair, or None."""
        state = self.get(request_id)
        return None if state is None or state.pair is None else state.pair.other(request_id)

    def with_partners(self, request_ids: Iterable[str]) -> set[str]:
        """Return `request_ids` together with the ids of their CFG partners."""
        ids = set(request_ids)
        return ids | {partner for request_id in ids if (partner := self.partner(request_id)) is not None}

    def guidance_has_begun(self, state: RequestState) -> bool:
        """Return True if the next row sampled by the CFG pair of `state` is guided."""
        pair = state.pair
        return pair is not None and self[pair.conditional].next_output >= pair.first_output

    def is_bound(self, request_id: str) -> bool:
        """Return True if the request may sample only together with its CFG partner."""
        state = self[request_id]
        return state.is_unconditional or self.guidance_has_begun(state)

    def must_compute_more(self, request: Request, num_rows: int) -> bool:
        """Return True if `num_rows`, the rows left to compute after a prefix-cache hit, are too few.

        One more block is then computed. A guided request must compute at least one row before the row that samples. The
        MCTP modules' rows at the end of a block depend on the ids after it, which differ from those of the cached
        computation.
        """
        state = self[request.request_id]
        return state.is_read_by_modules or (num_rows < 2 and self.is_bound(request.request_id))

    def count_bursts(self, request_ids: Iterable[str]) -> None:
        """Count in advance the extra rows of MCTP modules in the scheduled step; vLLM counts the first rows."""
        if self.rules.family.bursts is None:
            return
        for state in map(self.__getitem__, request_ids):
            request, pair = state.request, state.pair
            if not request.is_prefill_chunk:
                num_prompt_rows = (request if pair is None else self[pair.conditional].request).num_prompt_tokens
                num_extra = self.rules.num_extra(state.schedule, num_prompt_rows, request.num_computed_tokens)
                request.num_output_placeholders += num_extra

    def await_half(self, state: RequestState) -> None:
        """Mark the CFG pair of `state` as waiting for a new unconditional request."""
        assert state.pair is not None
        state.pair.awaits_half = True
        self.revision += 1

    def stop_awaiting(self, state: RequestState) -> None:
        """Clear the mark set by `await_half`."""
        assert state.pair is not None
        state.pair.awaits_half = False
        self.revision += 1

    def drop_unconditional(self, state: RequestState) -> str:
        """Detach the unconditional request of `state` and return its id, which the caller must finish.

        If guidance has reached the limit that the request asked for, the reply is unguided from then on.
        """
        pair = state.pair
        assert pair is not None
        request_id = pair.unconditional
        assert request_id is not None, f"{state.request.request_id} has no half to release"
        pair.part()
        if state.next_output >= state.limit:
            state.pair = None
        self.remove(request_id)
        self.revision += 1
        return request_id

    def add_unconditional(self, state: RequestState) -> Request:
        """Create the unconditional request of `state`; its prompt is all rows so far, at least up to the audio."""
        pair, conditional, params = state.pair, state.request, state.params
        assert pair is not None
        context = unconditional_context(state, self.rules.family)
        pair.first_output = len(context) - conditional.num_prompt_tokens
        pair.unconditional, pair.awaits_half = partner_of(conditional.request_id), False
        num_guided_rows = self.rules.max_guided_rows(params.sampling)
        if num_guided_rows is not None:
            state.limit = pair.first_output + num_guided_rows
        params = replace(params, codes=context[:, 1:], is_unconditional=True, audios=(), num_delayed_rows=0)
        sampling_params = copy.copy(conditional.sampling_params)
        assert sampling_params is not None
        sampling_params.extra_args = None
        sampling_params.max_tokens = conditional.max_tokens - pair.first_output
        request = Request(
            request_id=pair.unconditional,
            prompt_token_ids=context[:, 0].tolist(),
            sampling_params=sampling_params,
            pooling_params=None,
            client_index=conditional.client_index,
            arrival_time=conditional.arrival_time,
            lora_request=conditional.lora_request,
            cache_salt=conditional.cache_salt,
        )
        track = unconditional_track(state.track, self.rules.family)
        half = RequestState(request, params, RowHistory(params.codes, track), state.tracker, pair, track=track)
        self._put(half, is_caching=conditional._block_hasher is not None)
        self.revision += 1
        return request
