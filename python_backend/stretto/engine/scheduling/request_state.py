"""What the scheduler knows of one request: the copy of its state that outlives preemption."""

import time
from dataclasses import dataclass, field, replace

from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.request import Request

from stretto.engine.request.new_request import SpeechRequestData
from stretto.engine.request.pairs import num_guided, partner_of
from stretto.engine.request.params import SpeechParams
from stretto.engine.request.track import Track
from stretto.engine.request.tracker import SegmentTracker
from stretto.engine.request.wire import GUIDANCE_OFF, GUIDANCE_ON, NO_CHANGE, Trailer
from stretto.engine.scheduling.history import RowHistory
from stretto.engine.scheduling.outgoing_rows import OutgoingRows
from stretto.families.bursts import BurstSchedule

NOT_YET = 1 << 60


@dataclass
class GuidancePair:
    """The two halves of a guided reply, by request id.

    first_output: the conditional half's output index at which guidance begins; NOT_YET while it is unknown.
    unconditional: None while there is no such half. awaits_half: the conditional half waits for one to be created.
    """

    conditional: str
    first_output: int = NOT_YET
    unconditional: str | None = None
    awaits_half: bool = False

    def part(self) -> None:
        """Note that the unconditional half has gone."""
        self.first_output, self.unconditional = NOT_YET, None

    def other(self, request_id: str) -> str | None:
        """The other half of `request_id`, where there is one yet."""
        return self.unconditional if request_id == self.conditional else self.conditional


@dataclass(slots=True)
class RequestState:
    """One request, an unconditional one or not. `tracker` follows the conditional half.

    pair: None where guidance has no part in it, or no longer. limit: the output index from which on it has none, once
    that is known. is_guided: whether the newest row of the audio segment was guided. guidance_switches: the rows of its
    audio, from 0, at which guidance went, came back, went ... was_cut: a limit closed a segment that the model had not.
    added_s: when the scheduler got it, by the clock that nobody sets. queue_s: how long it waited since for its first
    step. outgoing: its rows that are still here.
    schedule: which rows of its reply modules say; None where the model has none. track: its text track, where the
    family has one. held_s: how long it waited for words of it, in the middle of the reply.
    """

    request: Request
    params: SpeechParams
    history: RowHistory
    tracker: SegmentTracker
    pair: GuidancePair | None = None
    limit: int = NOT_YET
    is_guided: bool = False
    track: Track | None = None
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
        self.outgoing = OutgoingRows(self.tracker)
        self.partner_id = partner_of(self.request.request_id)
        self.is_unconditional, self.asks_for_guidance = self.params.is_unconditional, self.params.is_guided
        self.is_adaptive = self.params.sampling.policy == "adaptive"
        self.schedule = self.tracker.rules.schedule(self.params.sampling)

    @property
    def is_read_by_modules(self) -> bool:
        """Whether modules read its rows: where none of them says any they do not."""
        return self.schedule is not None and self.schedule.max_extra > 0

    @property
    def waits_for_words(self) -> bool:
        """Whether it has said a row whose word has not come."""
        return self.track is not None and self.request.num_tokens > self.track.num_known

    @property
    def next_output(self) -> int:
        """The index, in the reply, of the first row that the next step samples."""
        return self.request.num_output_tokens + self.request.num_output_placeholders

    def note_guidance(self, is_guided: bool) -> int:
        """Whether the newest row, one of the audio, was guided; returns its mark."""
        if not is_guided or self.limit != NOT_YET:
            is_due = self.tracker.position - self.request.num_prompt_tokens <= self.limit
            assert is_guided == is_due or self.is_adaptive, f"{self.request.request_id}: guided {is_guided}"
        if is_guided == self.is_guided:
            return NO_CHANGE
        self.is_guided = is_guided
        self.guidance_switches.append(self.tracker.position - 1 - self.tracker.audio_start)
        return GUIDANCE_ON if is_guided else GUIDANCE_OFF

    def for_worker(self, data: NewRequestData) -> SpeechRequestData:
        """What the worker is told as the request gets a slot: vLLM's `data`, its parameters and its history."""
        if self.queue_s is None:
            self.queue_s = time.monotonic() - self.added_s
        track = None if self.track is None else replace(self.track, ids=self.track.ids.copy())
        return SpeechRequestData.of(data, self.params, self.history.rows(0, self.request.num_tokens), track)

    def trailer(self) -> Trailer:
        """What the client is told behind the last row."""
        assert self.queue_s is not None
        num_frames = num_guided(self.guidance_switches, self.tracker.num_frames) if self.asks_for_guidance else 0
        queue_us = round(1e6 * self.queue_s)
        held_us = round(1e6 * self.held_s)
        return Trailer(num_frames, self.request.num_preemptions, int(self.was_cut), queue_us, held_us)
