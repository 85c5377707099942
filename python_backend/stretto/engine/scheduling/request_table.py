"""Table of the states of all requests, which also creates unconditional requests."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from vllm.v1.request import Request

from stretto.engine.protocol import read_extra_args
from stretto.engine.reply_rules import ReplyState, SegmentRules
from stretto.engine.scheduling.block_hashes import row_block_hasher
from stretto.engine.scheduling.request_state import GuidancePair, RequestState
from stretto.engine.scheduling.row_history import RowHistory
from stretto.streams.layout import Segment


class Follower(Protocol):
    """Observer of the request table that keeps its own state per request."""

    def add(self, state: RequestState) -> None:
        """Handle a request that has arrived."""

    def remove(self, request_id: str) -> None:
        """Handle a request, conditional or unconditional, that has ended."""


class RequestTable(dict[str, RequestState]):
    """State of every request, keyed by id.

    An entry exists exactly as long as the request exists in vLLM.

    Attributes:
        revision: Counter that increases whenever plans of earlier steps may become void: a CFG pair gains, loses or
            awaits its unconditional request, or a streamed text becomes complete.
    """

    def __init__(self, rules: SegmentRules, hash_block_size: int):
        super().__init__()
        self.rules = rules
        self.followers: Sequence[Follower] = ()
        self.revision = 0
        self._hash_block_size = hash_block_size
        self._new_pair = rules.family.unconditional.pair or GuidancePair

    def add(self, request: Request) -> RequestState:
        """Add a request that has just arrived and return its state."""
        family = self.rules.family
        assert request.sampling_params is not None
        extra_args = request.sampling_params.extra_args
        assert extra_args is not None, f"{request.request_id} did not come through SpeechLLM"
        prompt, host = read_extra_args(extra_args, family.layout.num_input_streams)
        request.sampling_params.extra_args = None  # vLLM would send them to each worker, and log them if a step fails
        task = family.task(prompt.task)
        is_guided = prompt.sampling.has_pair and Segment.AUDIO in task.segments
        pair = self._new_pair(request.request_id) if is_guided else None
        track = self.rules.track(request.num_prompt_tokens, prompt.track, prompt.is_open)
        reply = ReplyState.begin(self.rules, task, request.num_prompt_tokens, track)
        history = RowHistory(prompt.rows[:, 1:], track)
        state = RequestState(request, prompt, host, history, reply, pair, is_guided=is_guided, track=track)
        self._put(state, is_caching=request._block_hasher is not None)
        for follower in self.followers:
            follower.add(state)
        return state

    def _put(self, state: RequestState, is_caching: bool) -> None:
        request = state.request
        self[request.request_id] = state
        if is_caching:  # vLLM hashes only the ids of stream 0
            rows_of = state.history.rows
            prompt = state.prompt
            is_read = state.is_read_by_modules
            conditions = prompt.inputs, is_read, state.track, prompt.condition
            request._block_hasher = row_block_hasher(self._hash_block_size, rows_of, *conditions)
            request.block_hashes.clear()
            request.update_block_hashes()

    def remove(self, *request_ids: str) -> None:
        """Remove requests that have ended."""
        for request_id in request_ids:
            self.pop(request_id, None)
            for follower in self.followers:
                follower.remove(request_id)

    def partner(self, request_id: str) -> str | None:
        """Return the id of the request's CFG partner, or None if it has none."""
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
        """Return True if the request may be sampled only in the same step as its CFG partner."""
        state = self[request_id]
        return state.is_unconditional or state.is_held or self.guidance_has_begun(state)

    def must_compute_more(self, request: Request, num_rows: int) -> bool:
        """Return True if a prefix-cache hit that leaves `num_rows` rows must be shortened by one block.

        A request that is bound to its CFG partner must compute at least one row before the row that is sampled from.
        With MCTP modules, the KV entries of the last rows of a block depend on the ids after the block. These may
        differ from the ids of the cached request.
        """
        state = self[request.request_id]
        return state.is_read_by_modules or (num_rows < 2 and self.is_bound(request.request_id))

    def count_bursts(self, request_ids: Iterable[str]) -> None:
        """Add the rows that MCTP modules will generate in a step to those that vLLM counts, the backbone's."""
        if self.rules.max_rows_per_step == 1:
            return
        for state in map(self.__getitem__, request_ids):
            request = state.request
            pair = state.pair
            if not request.is_prefill_chunk:
                num_prompt_rows = (request if pair is None else self[pair.conditional].request).num_prompt_tokens
                num_extra = self.rules.num_extra(state.schedule, num_prompt_rows, request.num_computed_tokens)
                request.num_output_placeholders += num_extra

    def await_unconditional(self, state: RequestState) -> None:
        """Mark the CFG pair of `state` as waiting for a new unconditional request."""
        assert state.pair is not None
        state.pair.awaits_unconditional = True
        self.revision += 1

    def stop_awaiting(self, state: RequestState) -> None:
        """Undo `await_unconditional`."""
        assert state.pair is not None
        state.pair.awaits_unconditional = False
        self.revision += 1

    def drop_unconditional(self, state: RequestState) -> str:
        """Detach the unconditional request of `state`, and return its id so that the caller finishes it.

        If guidance has reached its time limit, the reply stays unguided.
        """
        pair = state.pair
        assert pair is not None
        request_id = pair.unconditional
        assert request_id is not None, f"{state.request.request_id} has no unconditional request to release"
        pair.detach()
        if state.next_output >= state.limit:
            state.pair = None
        self.remove(request_id)
        self.revision += 1
        return request_id

    def add_unconditional(self, state: RequestState) -> Request:
        """Create the unconditional request of `state`, and return it so that the caller queues it.

        Its prompt covers all rows so far, and at least all rows before the audio.
        """
        pair = state.pair
        conditional = state.request
        prompt = state.prompt
        assert pair is not None
        context = pair.context(state)
        pair.attach(max(conditional.num_tokens, state.reply.audio_start) - conditional.num_prompt_tokens)
        assert pair.unconditional is not None
        num_guided_rows = self.rules.max_guided_rows(prompt.sampling)
        if num_guided_rows is not None:
            state.limit = pair.first_output + num_guided_rows
        kept = self.rules.family.unconditional.keep_first
        audios = tuple(audio for audio in prompt.audios if audio.first_row + audio.num_rows <= kept)
        images = tuple(image for image in prompt.images if image.first_row + image.num_rows <= kept)
        prompt = replace(prompt, rows=context, audios=audios, images=images, delayed_tail=None)
        sampling_params = copy.copy(conditional.sampling_params)
        assert sampling_params is not None
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
        track = None if state.track is None else state.track.unconditional(self.rules.family)
        history = RowHistory(context[:, 1:], track)
        half = RequestState(request, prompt, state.host, history, state.reply, pair, track=track)
        half.conditional = state if track is None else None
        self._put(half, is_caching=conditional._block_hasher is not None)
        self.revision += 1
        return request
