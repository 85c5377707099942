"""Position of a reply in its segments, followed on the host from the tokens of stream 0."""

from dataclasses import dataclass, field

from stretto.engine.request.rules import SegmentRules
from stretto.families.base import Task
from stretto.streams.segment import Segment

UNKNOWN = -1
# Cached because they are used per row, and enum member access is slow in Python 3.11.
TEXT, TRANSITION, AUDIO, TAIL, INTERLEAVED = Segment


@dataclass(slots=True)
class SegmentTracker:
    """Segment state of one reply after the tokens pushed so far; host twin of `worker.segment_state.SegmentState`.

    Attributes:
        position: Index of the next row.
        num_text_tokens: Number of text tokens; for an interleaved reply, codes included.
        audio_start: Position of the first audio row, or UNKNOWN.
        audio_end: Position of `end_of_audio`, or UNKNOWN.
        script: Spoken tokens of the text segment, which the alignment pointer moves along.
        pointer: Number of the entry being spoken, from 1; 0 before the first.
        num_interleaved: Number of codes of an interleaved reply.
        first_end: Position of the first row in which stream 0 drew its own end, for families with per-stream ends.
        segment: Segment of the next row.
    """

    rules: SegmentRules
    task: Task
    position: int
    num_text_tokens: int = 0
    audio_start: int = UNKNOWN
    audio_end: int = UNKNOWN
    script: list[int] = field(default_factory=list)
    pointer: int = 0
    num_interleaved: int = 0
    first_end: int = UNKNOWN
    segment: Segment = field(default=TEXT, init=False)
    _closings: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self._closings = self.rules.closings(self.task)
        if self.task.segments[0] is AUDIO:
            self.audio_start, self.segment = self.position, AUDIO
        elif self.task.segments[0] is INTERLEAVED:
            self.segment = INTERLEAVED

    @property
    def num_frames(self) -> int:
        """Number of frames begun, without those that stay incomplete if the audio ends here."""
        if self.audio_start == UNKNOWN:
            return self.num_interleaved
        stop = self.position if self.audio_end == UNKNOWN else self.audio_end
        return max(0, stop - self.audio_start - self.rules.num_closing_rows) // self.rules.family.rows_per_frame

    def push(self, token_id: int) -> Segment:
        """Process the token of the next row and return the segment of that row."""
        segment = self.segment
        if segment is AUDIO:
            self._push_audio(token_id)
        elif segment is TEXT:
            self._push_text(token_id)
        elif segment is INTERLEAVED:
            self._push_text(token_id)
            self.num_interleaved += token_id in self.rules.family.layout.audio[0]
        self.position += 1
        if self.position == self.audio_start:
            self.segment = AUDIO
        return segment

    def _push_text(self, token_id: int) -> None:
        num_rows, script = self._closings.get(token_id), self.rules.family.script
        if num_rows is None:
            self.num_text_tokens += 1
            if script and token_id in script.spoken:
                self.script.append(token_id)
        elif AUDIO in self.task.segments:
            self.audio_start, self.segment = self.position + num_rows, TRANSITION

    def _push_audio(self, token_id: int) -> None:
        family = self.rules.family
        script = family.script
        if token_id == family.end_of_audio:
            self.audio_end, self.segment = self.position, TAIL
        elif script and (token_id - script.first_frame) % 2 == 0:
            self.pointer += 1
        elif family.staircase and self.first_end == UNKNOWN and token_id == family.staircase.end[0]:
            self.first_end = self.position
