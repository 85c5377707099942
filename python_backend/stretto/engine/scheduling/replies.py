"""What the scheduler knows of each reply: the copy of its state that outlives preemption."""

import copy
from dataclasses import dataclass, field, replace

import numpy as np
from vllm.v1.request import Request

from stretto.engine.request.pairs import (
    NOT_YET,
    GuidancePair,
    num_guided,
    partner_of,
    unconditional_audio,
    unconditional_rows,
)
from stretto.engine.request.params import SpeechParams
from stretto.engine.request.rules import SegmentRules
from stretto.engine.request.tracker import SegmentTracker
from stretto.engine.scheduling.history import RowHistory
from stretto.streams.segment import Segment


@dataclass(slots=True)
class Reply:
    """One half of a reply. `tracker` follows the conditional half.

    pair: None where guidance has no part in it, or no longer. limit: the output index from which on it has none, once
    that is known. is_guided: whether the newest row of the audio segment was guided. dropped_at: the last step of the
    engine before it lost its half. turns: the rows of its audio, from 0, at which guidance went, came back, went ...
    was_cut: a limit closed a segment that the model had not.
    """

    request: Request
    params: SpeechParams
    history: RowHistory
    tracker: SegmentTracker
    pair: GuidancePair | None = None
    limit: int = NOT_YET
    is_guided: bool = False
    dropped_at: int = 0
    turns: list[int] = field(default_factory=list)
    was_cut: bool = False
    queue_s: float | None = None
    partner_id: str = field(init=False)
    is_unconditional: bool = field(init=False)
    asks_for_guidance: bool = field(init=False)
    is_adaptive: bool = field(init=False)

    def __post_init__(self) -> None:
        self.partner_id = partner_of(self.request.request_id)
        self.is_unconditional, self.asks_for_guidance = self.params.is_unconditional, self.params.is_guided
        self.is_adaptive = self.params.sampling.policy == "adaptive"

    @property
    def num_guided_frames(self) -> int:
        """How many of its frames began in a guided row."""
        return num_guided(self.turns, self.tracker.num_frames) if self.asks_for_guidance else 0

    @property
    def next_output(self) -> int:
        """The index, in the reply, of the row that the next step samples."""
        return self.request.num_output_tokens + self.request.num_output_placeholders


class ReplyTable(dict[str, Reply]):
    """All replies that the scheduler holds, by request id; a reply is added and removed with its request.

    limited: those whose guidance ends before they do and has not ended yet. num_adaptive: those, half by half, whose
    guidance may come and go; dropped: those of them without a half; returning: those about to get one again.
    """

    def __init__(self, rules: SegmentRules):
        super().__init__()
        self.rules = rules
        self.limited: dict[str, Reply] = {}
        self.dropped: dict[str, Reply] = {}
        self.returning: dict[str, Reply] = {}
        self.num_adaptive = 0

    def partner(self, request_id: str) -> str | None:
        """The id of the other half of `request_id`, where there is one."""
        reply = self.get(request_id)
        return None if reply is None or reply.pair is None else reply.pair.other(request_id)

    def add(self, request: Request) -> Reply:
        """The reply to a request that has just arrived."""
        family = self.rules.family
        assert request.sampling_params is not None
        extra_args = request.sampling_params.extra_args
        assert extra_args is not None, f"{request.request_id} did not come through SpeechLLM"
        params = SpeechParams.from_extra_args(extra_args, family.layout.num_input_streams)
        task = family.task(params.task)
        tracker = SegmentTracker(self.rules, task, request.num_prompt_tokens)
        is_guided = params.is_guided and Segment.AUDIO in task.segments
        pair = GuidancePair(request.request_id) if is_guided else None
        history = RowHistory(params.codes[: request.num_prompt_tokens])
        reply = Reply(request, params, history, tracker, pair, is_guided=is_guided)
        self._put(reply)
        if is_guided and params.sampling.policy == "until_s":
            self.limited[request.request_id] = reply
        return reply

    def _put(self, reply: Reply) -> None:
        self[reply.request.request_id] = reply
        self.num_adaptive += reply.is_adaptive

    def add_unconditional(self, reply: Reply) -> Request:
        """The other half of `reply`, which has read all rows before the audio segment, or before where that stands."""
        pair, conditional, tracker, params = reply.pair, reply.request, reply.tracker, reply.params
        assert pair is not None
        context = self._context(reply)
        pair.first_output = len(context) - conditional.num_prompt_tokens
        pair.unconditional = partner_of(conditional.request_id)
        num_guided_rows = self.rules.max_guided_rows(params.sampling)
        if num_guided_rows is not None:
            reply.limit = pair.first_output + num_guided_rows
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
            cache_salt=conditional.cache_salt,
        )
        self._put(Reply(request, params, RowHistory(params.codes), tracker, pair))
        return request

    def _context(self, reply: Reply) -> np.ndarray:
        """The rows so far, at least all before the audio segment, as the unconditional half sees them: [n, S] int32."""
        family, request, audio_start = self.rules.family, reply.request, reply.tracker.audio_start
        known = request.num_tokens
        num_rows = max(known, audio_start)
        rows = np.full((num_rows, family.layout.num_input_streams), family.layout.pad_id, np.int32)
        rows[:known, 0] = request.all_token_ids[:known]
        rows[:known, 1:] = reply.history.rows(0, known)
        if known < num_rows:  # the forced rows, which the model has yet to read
            rows[known:, 0] = family.transition[known - num_rows :]
        before = unconditional_rows(rows[:audio_start], family.unconditional, family.layout.pad_id)
        return np.concatenate([before, unconditional_audio(rows[audio_start:], family)])

    def remove(self, request_id: str) -> None:
        """Forget a reply that has ended."""
        reply = self.pop(request_id, None)
        if reply is not None:
            self.num_adaptive -= reply.is_adaptive
        for some in (self.limited, self.dropped, self.returning):
            some.pop(request_id, None)

    def end_guidance(self, reply: Reply) -> None:
        """From here on guidance has no part in `reply`."""
        reply.pair = None
        self.limited.pop(reply.request.request_id, None)
