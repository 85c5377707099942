"""Scheduler state of one request, which survives preemption."""

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
    """Request ids of the two requests of a guided reply.

    Attributes:
        conditional: Id of the conditional request.
        first_output: Output index of the conditional request at which guidance begins; `NOT_YET` while unknown.
        unconditional: Id of the unconditional request, or None while there is none.
        awaits_half: True if the conditional request waits for an unconditional one to be created.
    """

    conditional: str
    first_output: int = NOT_YET
    unconditional: str | None = None
    awaits_half: bool = False

    def part(self) -> None:
        """Record that the unconditional request has been removed."""
        self.first_output, self.unconditional = NOT_YET, None

    def other(self, request_id: str) -> str | None:
        """Return the id of the other request of the pair, or None if it does not exist yet."""
        return self.unconditional if request_id == self.conditional else self.conditional


@dataclass(slots=True)
class RequestState:
    """State of one conditional or unconditional request; `tracker` always follows the conditional one.

    Attributes:
        pair: CFG pair, or None if the reply is not guided (any more).
        limit: Output index from which on the reply is unguided, once known.
        is_guided: True if the newest audio row was guided.
        track: Streamed text input, for families that have one.
        held_s: Seconds that the reply was blocked while waiting for text.
        guidance_switches: Audio row indices at which guidance stopped, resumed, stopped, and so on.
        was_cut: True if a length limit ended a segment before the model did.
        added_s: Monotonic time at which the scheduler received the request, in seconds.
        queue_s: Seconds from then to its first step.
        outgoing: Rows that have not been sent to the front end yet.
        schedule: Rows of the reply that MCTP modules generate; None if the model has no modules.
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
        """True if MCTP modules process its rows, i.e. if its schedule lets them generate any."""
        return self.schedule is not None and self.schedule.max_extra > 0

    @property
    def waits_for_words(self) -> bool:
        """True if it has generated a row whose text has not arrived."""
        return self.track is not None and self.request.num_tokens > self.track.num_known

    @property
    def next_output(self) -> int:
        """Index in the reply of the first row that the next step samples."""
        return self.request.num_output_tokens + self.request.num_output_placeholders

    def note_guidance(self, is_guided: bool) -> int:
        """Record whether the newest audio row was guided and return the row's guidance mark."""
        if not is_guided or self.limit != NOT_YET:
            is_due = self.tracker.position - self.request.num_prompt_tokens <= self.limit
            assert is_guided == is_due or self.is_adaptive, f"{self.request.request_id}: guided {is_guided}"
        if is_guided == self.is_guided:
            return NO_CHANGE
        self.is_guided = is_guided
        row = self.tracker.position - 1 - self.tracker.audio_start
        self.guidance_switches.append(row // self.tracker.rules.family.rows_per_frame)
        return GUIDANCE_ON if is_guided else GUIDANCE_OFF

    def for_worker(self, data: NewRequestData) -> SpeechRequestData:
        """Return the worker's record of a newly scheduled request: vLLM's `data` with parameters and history."""
        if self.queue_s is None:
            self.queue_s = time.monotonic() - self.added_s
        track = None if self.track is None else replace(self.track, ids=self.track.ids.copy())
        return SpeechRequestData.of(data, self.params, self.history.rows(0, self.request.num_tokens), track)

    def trailer(self) -> Trailer:
        """Return the statistics sent to the client after the last row."""
        assert self.queue_s is not None
        num_frames = num_guided(self.guidance_switches, self.tracker.num_frames) if self.asks_for_guidance else 0
        queue_us = round(1e6 * self.queue_s)
        held_us = round(1e6 * self.held_s)
        return Trailer(num_frames, self.request.num_preemptions, int(self.was_cut), queue_us, held_us)
