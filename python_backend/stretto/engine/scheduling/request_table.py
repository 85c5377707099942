"""Scheduler state per request, kept across preemption: generated rows, block hashes, CFG pairs."""

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import numpy as np
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.request import Request

from stretto.engine.protocol import GUIDANCE_OFF, GUIDANCE_ON, NO_CHANGE, SpeechParams, Trailer, num_guided, partner_of
from stretto.engine.reply_rules import ReplyState, SegmentRules
from stretto.engine.rules import with_where
from stretto.engine.scheduling.block_hashes import row_block_hasher
from stretto.engine.step_records import SpeechRequestData
from stretto.engine.tracks import Track
from stretto.families.base import Family, UnconditionalContext
from stretto.families.bursts import BurstSchedule
from stretto.streams.layout import Segment

MAX_NEWEST = 64


class RowHistory:
    """Ids of streams 1 to S - 1 in all rows of a request, prompt first, kept across preemption.

    The newest rows are kept as lists and moved to an array in batches. The ids of input-only streams are taken from the
    request's track whenever rows are read.
    """

    __slots__ = ("_newest", "_num_laid", "_rows", "_track", "num_prompt_rows", "num_rows")

    def __init__(self, prompt_codes: np.ndarray, track: Track | None = None):
        self._rows, self._track = prompt_codes.copy(), track
        self._newest: list[Sequence[int]] = []
        self._num_laid = len(prompt_codes)
        self.num_prompt_rows = self.num_rows = len(prompt_codes)

    def put(self, row: int, codes: Sequence[Sequence[int]]) -> None:
        """Record rows.

        Args:
            row: Index of the first row. If it is not the next row, the history is first truncated to `row` rows.
            codes: Ids of the rows, [n][S - 1].
        """
        if row != self.num_rows:
            self.truncate(row)
        self.num_rows += len(codes)
        self._newest += codes
        if len(self._newest) >= MAX_NEWEST:
            self._lay()

    def _lay(self) -> None:
        num_rows = self.num_rows
        if num_rows > len(self._rows):
            grown = np.zeros((max(MAX_NEWEST, 2 * num_rows), self._rows.shape[1]), np.int32)
            grown[: self._num_laid] = self._rows[: self._num_laid]
            self._rows = grown
        if self._newest:
            self._rows[self._num_laid : num_rows] = self._newest
        self._newest, self._num_laid = [], num_rows

    def truncate(self, num_rows: int) -> None:
        """Remove all rows except the first `num_rows`."""
        assert self.num_prompt_rows <= num_rows <= self.num_rows, (num_rows, self.num_rows)
        self._lay()
        self._num_laid = self.num_rows = num_rows

    def rows(self, first: int, last: int) -> np.ndarray:
        """Return a view of the ids in rows `first` to `last` - 1, int32 [last - first, S - 1]."""
        assert last <= self.num_rows, (first, last, self.num_rows)
        if last > self._num_laid:
            self._lay()
        rows = self._rows[first:last]
        if self._track is not None:
            self._track.fill(rows, first)
        return rows


MAX_WAIT_S = 0.2
WAIT_SHARE = 0.25  # share of the audio generated ahead of playback
SCRIPT_WAITS_S = 0.1, 0.5  # minimum and maximum wait of text that will be spoken
LEAST_LEAD_S = 0.25  # audio ahead of playback up to which each row is sent immediately, as needed by the first chunks


class OutgoingRows:
    """Rows of one reply that have not been sent to the front end yet, in the format that `read_rows` parses.

    Rows are sent in groups, because each message costs CPU time in both processes. Playback is assumed to start with
    the first row. Audio rows are held back for at most a fraction of the audio still to be played. Text rows are held
    back for at most as long as the text has taken so far, or twice as long if audio follows, because the audio begins
    only after the complete text.
    """

    def __init__(self, reply: ReplyState, clock: Callable[[], float] = time.monotonic) -> None:
        self._reply, self._clock = reply, clock
        self._frame_rate = reply.rules.family.frame_rate
        self._speaks = Segment.AUDIO in reply.task.segments
        self._ids: list[int] = []
        self._is_audio: bool | None = None
        self._began_s = self._due_s = 0.0  # start of the text or audio, and due time of its next rows

    def push(self, rows: list[int], is_last: bool) -> list[int]:
        """Add the newest rows, and return the rows to send now: all waiting rows, or none.

        Args:
            rows: The newest rows, which the state of the reply already includes.
            is_last: True to send all waiting rows immediately.
        """
        now = self._clock()
        is_audio = self._reply.audio_start >= 0 or self._reply.num_codes > 0
        if is_audio is not self._is_audio:
            self._is_audio, self._began_s, self._due_s = is_audio, now, now
        self._ids += rows
        if now < self._due_s and not is_last:
            return []
        self._due_s = now + self._wait_s(now - self._began_s)
        return self.pop_rows()

    def pop_rows(self) -> list[int]:
        """Remove and return all waiting rows."""
        ids, self._ids = self._ids, []
        return ids

    def _wait_s(self, elapsed_s: float) -> float:
        """Return how many seconds to wait for further rows before sending."""
        if not self._is_audio:
            least_s, longest_s = SCRIPT_WAITS_S
            return min(longest_s, max(least_s, 2 * elapsed_s)) if self._speaks else min(MAX_WAIT_S, elapsed_s)
        if self._frame_rate <= 0:
            return 0.0
        lead_s = self._reply.num_frames / self._frame_rate - elapsed_s - LEAST_LEAD_S
        return min(MAX_WAIT_S, WAIT_SHARE * max(lead_s, 0.0))


NOT_YET = 1 << 60
ON_ARRAYS = with_where(np.where)


class PairScheduler(Protocol):
    """Scheduler as a pair sees it that begins and ends its unconditional request itself."""

    def begin_unconditional(self, state: "RequestState") -> None:
        """Create and queue the unconditional request of the newest rows."""

    def end_unconditional(self, state: "RequestState") -> None:
        """Remove the unconditional request before the next step."""


@dataclass
class GuidancePair:
    """Ids of the two requests of a guided reply, and their synchronisation.

    The unconditional request exists from the first audio row to the end of the reply, or as long as the guidance policy
    wants it. A mechanism may have pairs with other rules (`Mechanism.pair`).

    Attributes:
        follows_rows: True if `follow` begins and ends the unconditional request after each row.
        conditional: Id of the conditional request.
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
        """True if the pair may have to wait in the next step, though it does not wait in this one."""
        return False

    def is_held(self, state: "RequestState") -> bool:
        """Return True if the next row of `state` may not be sampled until an unconditional request exists."""
        return self.awaits_unconditional

    def context(self, state: "RequestState") -> np.ndarray:
        """Return the prompt of the unconditional request, int32 [n, S]."""
        return unconditional_context(state)

    def begin(self, state: "RequestState") -> bool:
        """Return True if the unconditional request exists from the beginning of a reply that begins with audio."""
        return True

    def follow(self, state: "RequestState", token_id: int, is_guided: bool, scheduler: PairScheduler) -> int:
        """Begin or end the unconditional request after an audio row, and return the row's guidance mark.

        Args:
            state: State of the conditional request.
            token_id: Id of the row on stream 0.
            is_guided: True if the unconditional request was in the same step.
            scheduler: Scheduler that begins or ends the unconditional request.
        """
        return state.note_guidance(is_guided)

    def attach(self, first_output: int) -> None:
        """Record that the unconditional request has been created, and the index of the first guided row."""
        self.first_output, self.unconditional = first_output, partner_of(self.conditional)
        self.awaits_unconditional = False

    def detach(self) -> None:
        """Record that the unconditional request has been removed."""
        self.first_output, self.unconditional = NOT_YET, None

    def other(self, request_id: str) -> str | None:
        """Return the id of the other request in the pair, or None if there is none at present."""
        return self.unconditional if request_id == self.conditional else self.conditional


@dataclass(slots=True)
class RequestState:
    """State of one vLLM request, conditional or unconditional.

    Attributes:
        request: vLLM's request.
        params: Request parameters.
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
        added_s: Monotonic time at which the scheduler received the request, in seconds.
        queue_s: Time from `added_s` to the first step, in seconds.
        outgoing: Rows that have not been sent to the front end yet.
        schedule: Schedule of the rows that MCTP modules generate; None if the model has no modules.
    """

    request: Request
    params: SpeechParams
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
    schedule: BurstSchedule | None = field(init=False)

    def __post_init__(self) -> None:
        self.outgoing = OutgoingRows(self.reply)
        self.partner_id = partner_of(self.request.request_id)
        self.is_unconditional, self.asks_for_guidance = self.params.is_unconditional, self.params.sampling.has_pair
        self.is_adaptive = self.params.sampling.policy == "adaptive"
        self.schedule = self.reply.rules.schedule(self.params.sampling)

    @property
    def is_read_by_modules(self) -> bool:
        """True if MCTP modules process the request's rows, because they generate rows in its schedule."""
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
        """True if the reply has ended because its track has; this does not count as a cut."""
        return self.track is not None and self.track.ends_reply and self.reply.position > self.track.end + 1

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
        """Return the record for the worker: vLLM's `data` with our parameters and all rows so far."""
        if self.queue_s is None:
            self.queue_s = time.monotonic() - self.added_s
        track = None if self.track is None else replace(self.track, ids=self.track.ids.copy())
        # the slot of the conditional request has the state of the pair
        state = () if self.is_unconditional else self.reply.values(self.reply.rules.sent_state)
        codes = self.history.rows(0, self.request.num_tokens)
        return SpeechRequestData.extending(data, self.params, codes, track, state)

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
    family, request, audio_start = state.reply.rules.family, state.request, state.reply.audio_start
    layout, known = family.layout, request.num_tokens
    num_rows = max(known, audio_start)
    rows = np.full((num_rows, layout.num_input_streams), layout.pad_id, np.int32)
    rows[:known, 0] = request.all_token_ids[:known]
    rows[:known, 1:] = state.history.rows(0, known)
    if known < num_rows:  # forced rows that the model has not computed yet
        rows[known:, 0] = family.transition[known - num_rows :]
    before = unconditional_rows(rows[:audio_start], family.unconditional, layout.pad_id)
    if family.unconditional.hides_recording:
        before = np.where(rows[:audio_start] == _initial(family), rows[:audio_start], before)
    return np.concatenate([before, unconditional_audio(rows[audio_start:], state.reply.rules)])


def unconditional_rows(rows: np.ndarray, context: UnconditionalContext, pad_id: int) -> np.ndarray:
    """Return the rows before the audio as the unconditional request sees them, with the condition hidden.

    Args:
        rows: Rows of the conditional request before its audio, [n, S].
        context: Definition of the rows that stay visible.
        pad_id: Id of empty streams.
    """
    hidden = rows.copy()
    middle = slice(context.keep_first, max(context.keep_first, len(rows) - context.keep_last))
    hidden[middle] = pad_id
    hidden[middle, 0] = context.null_id
    return hidden


def _initial(family: Family) -> np.ndarray:
    """Return the initial id of each stream, [S]; -1 for none."""
    ids = family.layout.initial[1:] or [-1] * (family.layout.num_output_streams - 1)
    return np.array([-1, *ids, *[-1] * family.layout.num_input_only])


def unconditional_audio(rows: np.ndarray, rules: SegmentRules) -> np.ndarray:
    """Return audio rows [n, S] as the unconditional request sees them, with hidden streams masked."""
    layout, streams = rules.family.layout, rules.family.unconditional.hidden_streams
    is_hidden = np.isin(np.arange(1, layout.num_input_streams), streams)
    delays = np.array([*layout.delays[1:], *[0] * layout.num_input_only])
    frames, initial = np.arange(len(rows))[:, None], _initial(rules.family)[1:]
    others = ON_ARRAYS.hide_other(rows[:, 1:], is_hidden, frames, delays, initial, rules.constants)
    return np.column_stack([ON_ARRAYS.hide_first(rows[:, 0], rules.constants), others]).astype(rows.dtype)


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
        followers: Observers of added and removed requests.
        revision: Counter that increases whenever plans of earlier steps may become void, because a CFG pair gains or
            loses its unconditional request or starts to wait for one, or a streamed text becomes complete.
    """

    def __init__(self, rules: SegmentRules, hash_block_size: int):
        super().__init__()
        self.rules = rules
        self.followers: Sequence[Follower] = ()
        self.revision = 0
        self._hash_block_size = hash_block_size
        own = rules.family.mechanism.pair
        self._new_pair = GuidancePair if own is None else own

    def add(self, request: Request) -> RequestState:
        """Add a request that has just arrived and return its state."""
        family = self.rules.family
        assert request.sampling_params is not None
        extra_args = request.sampling_params.extra_args
        assert extra_args is not None, f"{request.request_id} did not come through SpeechLLM"
        params = SpeechParams.from_extra_args(extra_args, family.layout.num_input_streams)
        request.sampling_params.extra_args = None  # vLLM would send them to each worker, and log them if a step fails
        task = family.task(params.task)
        is_guided = params.sampling.has_pair and Segment.AUDIO in task.segments
        pair = self._new_pair(request.request_id) if is_guided else None
        track = self.rules.track(request.num_prompt_tokens, params.track, params.is_open)
        reply = ReplyState.begin(self.rules, task, request.num_prompt_tokens, track)
        history = RowHistory(params.codes[: request.num_prompt_tokens], track)
        state = RequestState(request, params, history, reply, pair, is_guided=is_guided, track=track)
        self._put(state, is_caching=request._block_hasher is not None)
        for follower in self.followers:
            follower.add(state)
        return state

    def _put(self, state: RequestState, is_caching: bool) -> None:
        request = state.request
        self[request.request_id] = state
        if is_caching:  # vLLM hashes only the ids of stream 0
            rows_of, params, is_read = state.history.rows, state.params, state.is_read_by_modules
            more = params.audios, is_read, state.track, params.condition
            request._block_hasher = row_block_hasher(self._hash_block_size, rows_of, *more)
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
        """Return True if a prefix-cache hit must be shortened by one block.

        A request that is bound to its CFG partner must compute at least one row before the row that is sampled from.
        With MCTP modules, the KV entries of the last rows of a block depend on the ids after the block, which may
        differ from the ids of the cached request.

        Args:
            request: The request.
            num_rows: Number of rows left to compute after the hit.
        """
        state = self[request.request_id]
        return state.is_read_by_modules or (num_rows < 2 and self.is_bound(request.request_id))

    def count_bursts(self, request_ids: Iterable[str]) -> None:
        """Count the rows that MCTP modules will generate in the scheduled step.

        The backbone's row is counted by vLLM itself.
        """
        if self.rules.family.bursts is None:
            return
        for state in map(self.__getitem__, request_ids):
            request, pair = state.request, state.pair
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
        """Detach the unconditional request of `state` and return its id; the caller must finish that request.

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
        """Create and return the unconditional request of `state`; the caller must queue it.

        Its prompt covers all rows so far, and at least all rows before the audio.
        """
        pair, conditional, params = state.pair, state.request, state.params
        assert pair is not None
        context = pair.context(state)
        pair.attach(max(conditional.num_tokens, state.reply.audio_start) - conditional.num_prompt_tokens)
        assert pair.unconditional is not None
        num_guided_rows = self.rules.max_guided_rows(params.sampling)
        if num_guided_rows is not None:
            state.limit = pair.first_output + num_guided_rows
        kept = self.rules.family.unconditional.keep_first
        audios = tuple(each for each in params.audios if each.first_row + each.num_rows <= kept)
        params = replace(params, codes=context[:, 1:], is_unconditional=True, audios=audios, num_delayed_rows=0)
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
        half = RequestState(request, params, RowHistory(params.codes, track), state.reply, pair, track=track)
        half.conditional = state if track is None else None
        self._put(half, is_caching=conditional._block_hasher is not None)
        self.revision += 1
        return request
