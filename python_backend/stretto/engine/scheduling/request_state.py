"""State of one request, and its pairing with an unconditional request."""

import time
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import numpy as np
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.request import Request

from stretto.engine.protocol import (
    GUIDANCE_OFF,
    GUIDANCE_ON,
    NO_CHANGE,
    Trailer,
    is_unconditional,
    num_guided,
    partner_of,
)
from stretto.engine.reply_rules import ReplyState, SegmentRules
from stretto.engine.rules import with_where
from stretto.engine.scheduling.outgoing_rows import OutgoingRows
from stretto.engine.scheduling.row_history import RowHistory
from stretto.engine.step_records import SpeechRequestData
from stretto.engine.tracks import Track
from stretto.family.base import UnconditionalContext
from stretto.family.mechanism import CollectedStates, RowSchedule
from stretto.records.prompt import Prompt

NOT_YET = 1 << 60
ON_ARRAYS = with_where(np.where)


class PairScheduler(Protocol):
    """Part of the scheduler that a pair uses to begin and end its unconditional request."""

    def begin_unconditional(self, state: "RequestState") -> None:
        """Create an unconditional request that begins at the newest rows, and queue it."""

    def end_unconditional(self, state: "RequestState") -> None:
        """Remove the unconditional request before the next step."""


@dataclass
class GuidancePair:
    """Ids of the two requests of a guided reply, and their synchronisation.

    The unconditional request exists from the first audio row to the end of the reply, or until the guidance policy ends
    it. A family may have pairs with other rules (`UnconditionalContext.pair`).

    Attributes:
        follows_rows: True if `follow` begins and ends the unconditional request after each row.
        first_output: Index in the reply of the first guided row; `NOT_YET` while unknown.
        unconditional: Id of the unconditional request; None while there is none.
        awaits_unconditional: True if the conditional request may not sample until an unconditional request exists.
    """

    follows_rows: ClassVar[bool] = False
    conditional: str
    first_output: int = NOT_YET
    unconditional: str | None = None
    awaits_unconditional: bool = False

    @property
    def may_wait(self) -> bool:
        """True if sampling may have to wait for the unconditional request in the next step."""
        return False

    def is_held(self, state: "RequestState") -> bool:
        """Return True if the next row of `state` may not be sampled until an unconditional request exists."""
        return self.awaits_unconditional

    def context(self, state: "RequestState") -> np.ndarray:
        """Return the prompt of the unconditional request, int32 [n, S]."""
        return unconditional_context(state)

    def begin(self, state: "RequestState") -> bool:
        """Return True if the unconditional request of a reply that begins with audio exists from the start."""
        return True

    def follow(self, state: "RequestState", token_id: int, is_guided: bool, scheduler: PairScheduler) -> int:
        """Begin or end the unconditional request after an audio row, and return the row's guidance mark.

        Args:
            is_guided: True if the unconditional request was in the same step.
        """
        return state.note_guidance(is_guided)

    def attach(self, first_output: int) -> None:
        """Record that the unconditional request has been created, and the index of the first guided row."""
        self.unconditional = partner_of(self.conditional)
        self.first_output = first_output
        self.awaits_unconditional = False

    def detach(self) -> None:
        """Record that the unconditional request has been removed."""
        self.first_output = NOT_YET
        self.unconditional = None

    def other(self, request_id: str) -> str | None:
        """Return the id of the other request in the pair, or None if there is none at present."""
        return self.unconditional if request_id == self.conditional else self.conditional


@dataclass(slots=True)
class RequestState:
    """State of one vLLM request, conditional or unconditional.

    Attributes:
        prompt: The request's prompt, without what only the front end needs.
        history: Ids of streams 1 to S - 1 in all rows.
        reply: State of the reply; both requests of a pair share it.
        pair: CFG pair; None if the reply is not guided, or no longer guided.
        limit: Index in the reply of the first row after the guided rows, once known.
        is_guided: True if the newest audio row was guided.
        track: Ids of the input-only streams that are known, if the family has any.
        conditional: State of the conditional request, for an unconditional request without a track of its own.
        held_s: Time that the reply spent waiting for streamed text or live audio, in seconds.
        guidance_switches: Frame indices at which guidance stopped, resumed, stopped, and so on.
        was_cut: True if a length limit ended a segment before the model did.
        prompt_states: Hidden states that a speaker reads, until they have been sent to the front end; None for none.
        added_s: Monotonic time at which the scheduler received the request, in seconds.
        queue_s: Time from `added_s` to the first step, in seconds.
        schedule: Schedule of the reply's steps; None if each generates one row.
    """

    request: Request
    prompt: Prompt
    host: str
    history: RowHistory
    reply: ReplyState
    pair: GuidancePair | None = None
    limit: int = NOT_YET
    is_guided: bool = False
    track: Track | None = None
    conditional: "RequestState | None" = None
    held_s: float = 0.0
    guidance_switches: list[int] = field(default_factory=list)
    was_cut: bool = False
    added_s: float = field(default_factory=time.monotonic)
    queue_s: float | None = None
    outgoing: OutgoingRows = field(init=False)
    partner_id: str = field(init=False)
    is_unconditional: bool = field(init=False)
    asks_for_guidance: bool = field(init=False)
    is_adaptive: bool = field(init=False)
    schedule: RowSchedule | None = field(init=False)
    prompt_states: CollectedStates | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.outgoing = OutgoingRows(self.reply)
        self.partner_id = partner_of(self.request.request_id)
        self.is_unconditional = is_unconditional(self.request.request_id)
        self.asks_for_guidance = self.prompt.sampling.has_pair
        self.is_adaptive = self.prompt.sampling.policy == "adaptive"
        self.schedule = self.reply.rules.schedule(self.prompt.sampling)
        family = self.reply.rules.family
        if (speaker := family.mechanism.speaker) is not None:
            self.prompt_states = speaker.collect_states(family, self.prompt)

    @property
    def is_read_by_modules(self) -> bool:
        """True if MCTP modules process the request's rows, because its schedule has multi-token steps."""
        return self.schedule is not None and self.schedule.max_extra > 0

    @property
    def is_live(self) -> bool:
        """True if the reply reads audio that was still incomplete when the request arrived."""
        return self.track is not None and self.track.is_live and self.track.ends_reply

    @property
    def waits_for_text(self) -> bool:
        """True if the track ids (text or codes) of the request's newest row have not arrived."""
        if self.conditional is not None:
            return self.conditional.waits_for_text
        return self.track is not None and self.request.num_tokens > self.track.num_known(self.reply)

    @property
    def has_followed_track(self) -> bool:
        """True if the reply ended because it has read its whole track, which does not count as a cut."""
        return self.track is not None and self.track.ends_reply and self.reply.position > self.track.end + 1

    @property
    def max_cached_rows(self) -> int:
        """Maximum number of leading rows that need not be computed if the prefix cache has them."""
        row = None if self.prompt_states is None else self.prompt_states.first_unknown
        return self.request.num_tokens if row is None else row

    @property
    def next_output(self) -> int:
        """Index in the reply of the first row that the next step samples."""
        return self.request.num_output_tokens + self.request.num_output_placeholders

    @property
    def is_held(self) -> bool:
        """True if the next row may not be sampled until an unconditional request exists."""
        return self.pair is not None and self.pair.is_held(self)

    def note_guidance(self, is_guided: bool) -> int:
        """Record whether the newest audio row was guided and return the row's guidance mark."""
        if not is_guided or self.limit != NOT_YET:
            is_due = self.reply.position - self.request.num_prompt_tokens <= self.limit
            assert is_guided == is_due or self.is_adaptive, f"{self.request.request_id}: guided {is_guided}"
        if is_guided == self.is_guided:
            return NO_CHANGE
        self.is_guided = is_guided
        row = self.reply.position - 1 - self.reply.audio_start
        self.guidance_switches.append(row // self.reply.rules.family.rows_per_frame)
        return GUIDANCE_ON if is_guided else GUIDANCE_OFF

    def for_worker(self, data: NewRequestData) -> SpeechRequestData:
        """Return the record for the worker: vLLM's `data` with our prompt and all rows so far."""
        if self.queue_s is None:
            self.queue_s = time.monotonic() - self.added_s
        track = None if self.track is None else replace(self.track, ids=self.track.ids.copy())
        # the slot of the conditional request has the state of the pair
        state = () if self.is_unconditional else self.reply.values(self.reply.rules.sent_state)
        codes = self.history.rows(0, self.request.num_tokens)
        return SpeechRequestData.extending(data, self.prompt, codes, track, state)

    def trailer(self) -> Trailer:
        """Return the statistics that are sent to the front end after the last row."""
        assert self.queue_s is not None
        num_frames = num_guided(self.guidance_switches, self.reply.num_frames) if self.asks_for_guidance else 0
        queue_us = round(1e6 * self.queue_s)
        held_us = round(1e6 * self.held_s)
        return Trailer(num_frames, self.request.num_preemptions, int(self.was_cut), queue_us, held_us)


def unconditional_context(state: RequestState) -> np.ndarray:
    """Return the prompt of the unconditional request, int32 [n, S].

    The prompt covers all rows of the conditional request so far and, if the audio segment has not begun, the forced
    rows before it.
    """
    family = state.reply.rules.family
    request = state.request
    audio_start = state.reply.audio_start
    layout = family.layout
    num_computed = request.num_tokens
    num_rows = max(num_computed, audio_start)
    rows = np.full((num_rows, layout.num_input_streams), layout.pad_id, np.int32)
    rows[:num_computed, 0] = request.all_token_ids[:num_computed]
    rows[:num_computed, 1:] = state.history.rows(0, num_computed)
    if num_computed < num_rows:  # forced rows that the model has not computed yet
        rows[num_computed:, 0] = family.transition[num_computed - num_rows :]
    before = unconditional_rows(rows[:audio_start], family.unconditional, layout.pad_id)
    initial = state.reply.rules.other_streams[2]
    before[:, 1:] = np.where(rows[:audio_start, 1:] == initial, initial, before[:, 1:])
    return np.concatenate([before, unconditional_audio(rows[audio_start:], state.reply.rules)])


def unconditional_rows(rows: np.ndarray, context: UnconditionalContext, pad_id: int) -> np.ndarray:
    """Return the rows [n, S] before the audio as the unconditional request reads them, with the condition hidden."""
    hidden = rows.copy()
    middle = slice(context.keep_first, max(context.keep_first, len(rows) - context.keep_last))
    hidden[middle] = pad_id
    hidden[middle, 0] = context.null_id
    return hidden


def unconditional_audio(rows: np.ndarray, rules: SegmentRules) -> np.ndarray:
    """Return audio rows [n, S] as the unconditional request reads them, with hidden streams masked."""
    delays, hidden, initial, _ = rules.other_streams
    frames = np.arange(len(rows))[:, None]
    others = ON_ARRAYS.hide_other(rows[:, 1:], hidden != 0, frames, delays, initial, rules.constants)
    return np.column_stack([ON_ARRAYS.hide_first(rows[:, 0], rules.constants), others]).astype(rows.dtype)
