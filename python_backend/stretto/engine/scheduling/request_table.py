"""The requests that the scheduler holds, and the unconditional ones that it makes beside them."""

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
    """Whoever keeps something of the requests beside their states."""

    def add(self, state: RequestState) -> None:
        """A request has arrived."""

    def remove(self, request_id: str) -> None:
        """A request has ended, or the unconditional one that was made beside one."""


class RequestTable(dict[str, RequestState]):
    """The state of every request by its id; one is added and removed with vLLM's request.

    followers: are told of requests that come and go. revision: goes up whenever a pair gets a half, loses one, or is
    held until it gets one.
    """

    def __init__(self, rules: SegmentRules, hash_block_size: int):
        super().__init__()
        self.rules = rules
        self.followers: Sequence[Follower] = ()
        self.revision = 0
        self._hash_block_size = hash_block_size

    def add(self, request: Request) -> RequestState:
        """The state of a request that has just arrived."""
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
        if is_caching:  # vLLM hashes the ids of stream 0 alone
            rows_of, audios, is_read = state.history.rows, state.params.audios, state.is_read_by_modules
            request._block_hasher = row_block_hasher(self._hash_block_size, rows_of, audios, is_read, state.track)
            request.block_hashes.clear()
            request.update_block_hashes()

    def remove(self, *request_ids: str) -> None:
        """Forget requests that have ended."""
        for request_id in request_ids:
            self.pop(request_id, None)
            for follower in self.followers:
                follower.remove(request_id)

    def partner(self, request_id: str) -> str | None:
        """The id of the other half of `request_id`, where there is one."""
        state = self.get(request_id)
        return None if state is None or state.pair is None else state.pair.other(request_id)

    def with_partners(self, request_ids: Iterable[str]) -> set[str]:
        """`request_ids` and the other halves of their pairs."""
        ids = set(request_ids)
        return ids | {partner for request_id in ids if (partner := self.partner(request_id)) is not None}

    def guidance_has_begun(self, state: RequestState) -> bool:
        """Whether the next row that the pair of `state` samples is guided."""
        pair = state.pair
        return pair is not None and self[pair.conditional].next_output >= pair.first_output

    def is_bound(self, request_id: str) -> bool:
        """Whether a request samples beside the other half of its pair only."""
        state = self[request_id]
        return state.is_unconditional or self.guidance_has_begun(state)

    def must_compute_more(self, request: Request, num_rows: int) -> bool:
        """Whether `num_rows` to compute, beside whole blocks that are shared, are too few: a block's more are enough.

        A half has something to compute before it may sample. What modules made of the last rows of a block goes by the
        ids behind it, which were others where the block was computed.
        """
        state = self[request.request_id]
        return state.is_read_by_modules or (num_rows < 2 and self.is_bound(request.request_id))

    def count_bursts(self, request_ids: Iterable[str]) -> None:
        """Count in advance what modules say in the step that has just been scheduled; vLLM counts the first rows."""
        if self.rules.family.bursts is None:
            return
        for state in map(self.__getitem__, request_ids):
            request, pair = state.request, state.pair
            if not request.is_prefill_chunk:
                num_prompt_rows = (request if pair is None else self[pair.conditional].request).num_prompt_tokens
                num_extra = self.rules.num_extra(state.schedule, num_prompt_rows, request.num_computed_tokens)
                request.num_output_placeholders += num_extra

    def await_half(self, state: RequestState) -> None:
        """Let the pair of `state` wait for a new half."""
        assert state.pair is not None
        state.pair.awaits_half = True
        self.revision += 1

    def stop_awaiting(self, state: RequestState) -> None:
        """Let the pair of `state` wait no longer."""
        assert state.pair is not None
        state.pair.awaits_half = False
        self.revision += 1

    def drop_unconditional(self, state: RequestState) -> str:
        """Part the pair of `state`, which goes on alone, for good where it was guided for as long as it asked.

        Returns the id of the half that must go.
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
        """The other half of `state`, which has read all rows before the audio segment, or before where that stands."""
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
