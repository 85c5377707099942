"""Rules of a reply (segments, lengths and end ids), and its state on the host."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any, NamedTuple, Self

import numpy as np

from stretto.engine.rules import BEFORE_AUDIO, STATE, ReplyConstants
from stretto.engine.tracks import ENDLESS, Track, common_track
from stretto.family.base import Family, Task
from stretto.family.input_tracks import TextRows
from stretto.family.mechanism import RowSchedule
from stretto.records.sampling import MAX_REDRAWS, SamplingConfig
from stretto.streams.layout import Segment

TEXT_KEY = "text"
NO_ID = -1


class TextUpdate(NamedTuple):
    """Further ids of a request's open track (streamed text or live audio).

    Attributes:
        ids: Token ids, row by row, int32 [n].
    """

    request_id: str
    ids: np.ndarray
    is_last: bool


def updates_to_extra_args(updates: Iterable[TextUpdate]) -> dict[str, Any]:
    """Encode updates for any number of requests as plain data for one `SamplingParams.extra_args`."""
    return {TEXT_KEY: [(update.request_id, update.ids.tobytes(), update.is_last) for update in updates]}


def updates_in(extra_args: dict[str, Any] | None) -> list[TextUpdate] | None:
    """Return the updates in `extra_args`, or None if these are the arguments of an ordinary request."""
    if extra_args is None or TEXT_KEY not in extra_args:
        return None
    return [TextUpdate(name, np.frombuffer(ids, np.int32), is_last) for name, ids, is_last in extra_args[TEXT_KEY]]


@dataclass(frozen=True)
class SegmentRules:
    """Rules for the start, the segments and the end of a family's replies within `max_model_len` rows.

    Positions are row indices, counted from the first row of the prompt.
    """

    family: Family
    max_model_len: int

    @cached_property
    def task_index(self) -> dict[str, int]:
        return {task.name: index for index, task in enumerate(self.family.tasks)}

    @cached_property
    def num_tail_rows(self) -> int:
        """Number of rows from `end_of_audio` to `end_of_reply`, in which delayed codebooks complete the last frame."""
        return self.family.tail.num_rows(self.family.layout.max_delay)

    @cached_property
    def num_closing_rows(self) -> int:
        """Number of rows at the end of the audio segment that do not begin a frame of the reply."""
        return self.family.tail.num_closing_rows(self.family.layout.max_delay)

    @cached_property
    def audio_limit(self) -> int:
        """Last position of `end_of_audio` that leaves enough rows to complete the last frame."""
        return self.max_model_len - 1 - self.num_tail_rows

    @cached_property
    def audio_start_limit(self) -> int:
        """Last position of the first audio row that leaves enough rows for one complete frame."""
        return self.audio_limit - self.num_closing_rows - 1

    def text_limit(self, task: Task) -> int:
        """Return the last position at which the text of `task` may end, with one frame after it if audio follows."""
        if Segment.AUDIO not in task.segments:
            return self.max_model_len - 1
        return self.audio_start_limit - len(self.family.transition) - 1

    def end_of_text(self, task: Task) -> int | None:
        """Return the id to write in the row that ends the text of `task`, or None to keep the sampled id."""
        return self.family.end_of_text if Segment.AUDIO in task.segments else self.family.end_of_reply

    def drawn_ends_of_text(self, task: Task) -> tuple[int, ...]:
        """Return the ids that, when sampled, end the text segment of `task` (empty if there is no text)."""
        if not task.writes:
            return ()
        if self.family.drawn_ends:
            return self.family.drawn_ends
        end = self.end_of_text(task)
        assert end is not None, f"{self.family.name}: no id ends its text"
        return (end,)

    @cached_property
    def drawn_ends_of_audio(self) -> tuple[int, ...]:
        """Ids that end the audio segment when sampled on stream 0.

        There are none if something else ends the audio: a whole frame, the recording that the reply reads, the family's
        sampler or a countdown (`has_countdown`).
        """
        is_ended = self.family.code_track is not None or self.family.drawing.ends_audio
        if self.family.end_frame or self.has_countdown or is_ended:
            return ()
        return self.family.drawn_ends or (self.family.end_of_audio,)

    @cached_property
    def written_ends_of_audio(self) -> Sequence[int]:
        """Ids in `drawn_ends_of_audio` that end the audio after `RowDraw.replace_first`: all but those of text rows."""
        kept = () if self.text_rows is None else self.text_rows.ids
        return [token for token in self.drawn_ends_of_audio if token not in kept]

    @cached_property
    def has_countdown(self) -> bool:
        """True if frames are latents and a reply continues for some rows after the detected end of speech."""
        layout = self.family.layout
        return layout.latents is not None and len(layout.audio[0]) > 1

    @cached_property
    def ends_streams(self) -> bool:
        """True if each output stream has an end id (its last extra id), and a frame of end ids ends the audio."""
        ends = self.family.end_frame
        return bool(ends) and ends == tuple(ids[-1] for ids in self.family.layout.extra if ids)

    @cached_property
    def num_end_columns(self) -> tuple[int, int]:
        """Number of end ids in the audio head of stream 0, and in the head of each other stream.

        End ids are the last columns of a head. They are masked until the reply has its minimum length.
        """
        if self.has_countdown:
            return 1, 0  # the id that begins the countdown
        return (1, 1) if self.ends_streams else (len(self.drawn_ends_of_audio), 0)

    def cut_of_text(self, task: Task) -> int:
        """Return the id to write in the row where a length limit ends the text of `task`."""
        end = self.end_of_text(task)
        return self.family.transition[0] if end is None else end

    def closings(self, task: Task) -> dict[int, int]:
        """Return the number of rows from the end of the text to the audio, keyed by the id that ends the text."""
        end = self.end_of_text(task)
        num_rows = 1 + len(self.family.transition)
        if end is not None:
            return {end: num_rows}
        return dict.fromkeys(self.family.drawn_ends, num_rows) | {self.cut_of_text(task): num_rows - 1}

    @cached_property
    def min_rows_to_audio(self) -> int:
        """Minimum number of rows from the row that ends a text to the first audio row."""
        tasks = [task for task in self.family.tasks if task.segments == (Segment.TEXT, Segment.AUDIO)]
        return min((rows for task in tasks for rows in self.closings(task).values()), default=self.max_model_len)

    def audio_ids(self, stream: int) -> list[int]:
        """Return the sorted ids that output stream `stream` may contain in audio, without end ids and latent words."""
        layout = self.family.layout
        if stream >= len(layout.audio):
            return []
        if not any(Segment.AUDIO in task.segments for task in self.family.tasks):
            return []
        ids = sorted({*layout.audio[stream], *(layout.extra[stream] if layout.extra else ())})
        return ids if stream else self.family.drawing.sampled_ids(ids)

    def max_guided_rows(self, sampling: SamplingConfig) -> int | None:
        """Return the number of guided rows at the start of the audio, or None if all rows are guided.

        If steps generate several rows, guidance ends with the last row of a step.
        """
        if sampling.guided_until_s is None:
            return None
        # The small term makes 0.28 s at 25 Hz exactly 7 rows; floating point yields 7.000000000000001.
        num_rows = self.family.rows_per_frame * math.ceil(sampling.guided_until_s * self.family.frame_rate - 1e-6)
        schedule = self.schedule(sampling)
        return num_rows if schedule is None else schedule.next_step(num_rows)

    def redraw_rows(self, sampling: SamplingConfig) -> list[int]:
        """Return the number of audio rows (`rules.num_audio_rows`) after which each redraw uses new noise.

        No earlier frame has a code in these rows. A redraw of the whole reply includes its text.
        """
        family = self.family
        drawn = [family.rows_per_frame * frame + family.layout.max_delay for frame in sampling.redraw_from if frame]
        rows = [BEFORE_AUDIO] * (len(sampling.redraw_from) - len(drawn)) + drawn
        return rows + [ENDLESS] * (MAX_REDRAWS - len(rows))

    def schedule(self, sampling: SamplingConfig) -> RowSchedule | None:
        """Return the schedule of a reply's steps, or None if each step generates one row."""
        steps = self.family.mechanism.steps
        return None if steps is None else steps.schedule(sampling.schedule)

    def num_extra(self, schedule: RowSchedule | None, num_prompt_rows: int, num_rows: int) -> int:
        """Return the number of rows that a step generates after the backbone's row.

        Args:
            num_rows: Total number of rows computed by the end of the step, including the prompt.
        """
        if schedule is None:
            return 0
        return min(schedule.num_extra(num_rows - num_prompt_rows), self.max_model_len - 1 - num_rows)

    @cached_property
    def max_rows_per_step(self) -> int:
        """Maximum number of rows that a step generates per reply, and that the next step processes."""
        steps = self.family.mechanism.steps
        return 1 if steps is None else 1 + steps.max_extra

    @cached_property
    def num_reopened_rows(self) -> int:
        """Number of newest rows whose KV entries multi-token steps may still change (`RowSteps.window`)."""
        steps = self.family.mechanism.steps
        return 0 if steps is None else steps.window

    def track(self, first_row: int, ids: Sequence[int], is_open: bool = False) -> Track | None:
        """Return the reply's track, or None if the family has none."""
        spec = self.family.track
        if spec is None:
            return None
        if spec.open is not None:
            track: Track = spec.open(self, first_row, ids, is_open)
            return track
        return common_track(self.family, spec, range(first_row, self.max_model_len), ids, is_open)

    @cached_property
    def text_rows(self) -> TextRows | None:
        """Audio rows that contain text instead of a frame, or None if the family has no such rows."""
        text = self.family.text_track
        return None if text is None else text.text_rows

    @cached_property
    def num_text_entries(self) -> int:
        """Number of columns of `SlotTables.texts` (`DrawRules.num_text_entries`), or 0 in most families."""
        return self.family.drawing.num_text_entries(self.max_model_len)

    def max_track_words(self, ids: Sequence[int], num_rows: int) -> int:
        """Return the maximum number of text ids, excluding the end id, in a reply of `num_rows` rows.

        Args:
            ids: Ids at the start of the track. If they include codes of a recording, these also take up rows.
            num_rows: Maximum number of rows of the reply, not counting its last row.
        """
        text = self.family.text_track
        return 0 if text is None else text.max_text_ids(num_rows - self.num_recorded(ids))

    def num_recorded(self, ids: Sequence[int]) -> int:
        """Return how many ids at the start of a request's text are codes of a recording (`TextRows`)."""
        if self.text_rows is None:
            return 0
        codes = self.family.layout.audio[0]
        return next((index for index, token_id in enumerate(ids) if token_id not in codes), len(ids))

    @cached_property
    def constants(self) -> ReplyConstants:
        """Constants of the family that `engine/rules.py` needs."""
        family = self.family
        first = family.layout.audio[0]
        return ReplyConstants(
            pad_id=family.layout.pad_id,
            end_of_audio=family.end_of_audio,
            end_of_reply=family.end_of_reply,
            num_tail_rows=self.num_tail_rows,
            audio_limit=self.audio_limit,
            last_kept=family.tail.last_kept(0),
            cut_rows=family.tail.cut_rows,
            warm_up_is_sampled=family.warm_up.is_sampled,
            first_start=first.start,
            first_stop=first.stop,
            interleaves=any(task.segments[0] is Segment.INTERLEAVED for task in family.tasks),
            hides_first=0 in family.unconditional.hidden_streams,
            null_id=family.unconditional.null_id,
            last_frame=first[-1] if self.has_countdown else NO_ID,
        )

    @cached_property
    def other_streams(self) -> np.ndarray:
        """Constants of streams 1 to S - 1, int64 [4, S - 1].

        The rows are the delay, a flag for streams hidden from unconditional requests, and the initial id or a pad. The
        fourth row is the last row of the tail in which the stream keeps its sampled id.
        """
        layout = self.family.layout
        hidden = self.family.unconditional.hidden_streams
        streams = range(1, layout.num_input_streams)
        delays = [*layout.delays[1:], *[0] * layout.num_input_only]
        initial = [*layout.initial[1:], *[layout.pad_id] * (len(streams) - len(layout.initial[1:]))]
        kept = [self.family.tail.last_kept(delay) for delay in delays]
        return np.array([delays, [stream in hidden for stream in streams], initial, kept], np.int64)

    @cached_property
    def own_state(self) -> tuple[str, ...]:
        """Names of the family's state columns (`DrawRules.state`)."""
        return tuple(self.family.drawing.state)

    @cached_property
    def state_names(self) -> tuple[str, ...]:
        """Names of the state columns of a reply (`ReplyState`), in the order of the slot table."""
        return STATE + self.own_state

    @cached_property
    def sent_state(self) -> tuple[str, ...]:
        """Names of the state columns that the family's rows change. Each row is sent with their new values."""
        return self.sent_common_state + self.own_state

    @cached_property
    def sent_common_state(self) -> tuple[str, ...]:
        """Names in `sent_state` that all families have (`engine.rules.STATE`), which precede the family's own."""
        return changed_state(self)

    @cached_property
    def num_row_words(self) -> int:
        """Number of words per row of engine output: output streams, pause probabilities and `sent_state`."""
        return self.family.num_row_words + len(self.sent_state)

    @cached_property
    def counted_ids(self) -> range:
        """Contiguous ids of stream 0 to which a repetition penalty applies.

        These are the text ids or, for families that generate no text, the codes and the adjacent ids that may replace
        them.
        """
        if self.num_text_ids:
            return range(self.num_text_ids)
        codes = self.family.layout.audio[0]
        others = {token for ids in self.family.layout.extra[:1] for token in ids}
        return range(codes.start, next(token for token in count(codes.stop) if token not in others))

    @cached_property
    def num_text_ids(self) -> int:
        """Upper bound (exclusive) of the ids that may be sampled in a text segment, or 0 if no task has one."""
        stops = [ids.stop for task in self.family.tasks for ids in task.text]
        ends = [1 + token for task in self.family.tasks for token in self.drawn_ends_of_text(task)]
        return max(stops + ends, default=0)


def changed_state(rules: SegmentRules) -> tuple[str, ...]:
    """Return the columns of `STATE` that can change in a reply of this family, in that order."""
    tasks = rules.family.tasks
    writes = any(task.writes for task in tasks)
    speaks = any(Segment.AUDIO in task.segments for task in tasks)
    changes = {
        "audio_start": writes and speaks,
        "audio_end": speaks,
        "num_text_tokens": writes,
        "num_codes": rules.constants.interleaves,
        "first_end": rules.has_countdown,
    }
    return tuple(name for name, is_changed in changes.items() if is_changed)


UNKNOWN = -1
# Cached because they are used per row, and enum member access is slow in Python 3.11.
TEXT, TRANSITION, AUDIO, TAIL, INTERLEAVED = Segment


@dataclass(slots=True)
class ReplyState:
    """State of one reply after its newest row, as the step that generated the row computed it (`SlotState`).

    Attributes:
        audio_start: Position of the first audio row, or UNKNOWN.
        audio_end: Position of `end_of_audio`, or UNKNOWN.
        num_text_tokens: Number of text tokens, including codes if the reply is interleaved.
        num_codes: Number of codes of an interleaved reply.
        first_end: Position at which the end of speech was detected, for families with latents.
        own_values: State of the family's sampler (`DrawRules.state`).
        max_audio_rows: Maximum number of rows in the audio segment that the request allows.
    """

    rules: SegmentRules
    task: Task
    position: int
    audio_start: int = UNKNOWN
    audio_end: int = UNKNOWN
    num_text_tokens: int = 0
    num_codes: int = 0
    first_end: int = UNKNOWN
    own_values: Sequence[int] = ()
    max_audio_rows: int = ENDLESS
    segment: Segment = field(init=False)
    _values: Sequence[int] = field(default=(), init=False)

    def __post_init__(self) -> None:
        self._note_segment()

    @classmethod
    def begin(cls, rules: SegmentRules, task: Task, position: int, track: Track | None = None) -> Self:
        """Return the state before a reply whose first row is `position`."""
        initial = {} if track is None else track.initial_state()
        own_values = dict(rules.family.drawing.state) | initial
        state = cls(rules, task, position, own_values=tuple(own_values.values()))
        if not task.writes:
            state.audio_start = position
            state.segment = AUDIO
        return state

    def move(self, position: int, values: Sequence[int]) -> None:
        """Set the state after a row: the `position` of the next row, and the `values` of `SegmentRules.sent_state`."""
        self.position = position
        if values != self._values:  # in audio, the state of most families rarely changes
            self._values = values
            names = self.rules.sent_common_state
            for name, value in zip(names, values, strict=False):
                setattr(self, name, value)
            self.own_values = values[len(names) :]
            self._note_segment()
        elif position == self.audio_start:
            self.segment = AUDIO

    def values(self, names: Iterable[str]) -> list[int]:
        """Return the values of the state columns `names`."""
        own_values = dict(zip(self.rules.own_state, self.own_values, strict=True))
        return [own_values[name] if name in own_values else getattr(self, name) for name in names]

    def _note_segment(self) -> None:
        if self.audio_start < 0:
            self.segment = self.task.segments[0]
        elif self.position < self.audio_start:
            self.segment = TRANSITION
        else:
            self.segment = AUDIO if self.audio_end < 0 else TAIL

    @property
    def num_frames(self) -> int:
        """Number of frames that would be complete if the audio ended here."""
        if self.audio_start == UNKNOWN:
            return self.num_codes
        return self._frames_before(self.position if self.audio_end == UNKNOWN else self.audio_end)

    @property
    def max_frames(self) -> int:
        """Number of frames after which a length limit ends the audio.

        Before the audio it is ENDLESS. In an interleaved reply, where text also counts, it is the current number.
        """
        if self.audio_start == UNKNOWN:
            return self.num_codes if self.task.segments[0] is INTERLEAVED else ENDLESS
        return self._frames_before(min(self.audio_start + self.max_audio_rows, self.rules.audio_limit))

    def _frames_before(self, stop: int) -> int:
        num_rows = stop - self.audio_start - self.rules.num_closing_rows
        if self.rules.text_rows is not None:
            num_rows -= self.own_values[self.rules.text_rows.column]
        return max(0, num_rows) // self.rules.family.rows_per_frame
