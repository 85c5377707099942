"""The rules that a reply follows, derived once from its family and the model length.

The host (`tracker.py`) and the device (`worker/segment_state.py`) walk through the segments by the same rules.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count

from stretto.engine.request.track import Track
from stretto.families.base import Family, Task
from stretto.families.bursts import BurstSchedule
from stretto.records.sampling import SamplingConfig
from stretto.streams.segment import Segment


@dataclass(frozen=True)
class SegmentRules:
    """What is fixed for every reply of a family in a model of `max_model_len` rows. Positions count from 0."""

    family: Family
    max_model_len: int

    @cached_property
    def task_index(self) -> dict[str, int]:
        return {task.name: index for index, task in enumerate(self.family.tasks)}

    @cached_property
    def num_tail_rows(self) -> int:
        """Rows from `end_of_audio` to `end_of_reply`, where there is a frame to complete; 0 where the two are one."""
        return self.family.tail.num_rows(self.family.layout.max_delay)

    @cached_property
    def num_closing_rows(self) -> int:
        """The last audio rows before `end_of_audio` that begin no frame of the reply."""
        return self.family.tail.num_closing_rows(self.family.layout.max_delay)

    @cached_property
    def audio_limit(self) -> int:
        """The last position at which `end_of_audio` leaves room for the tail."""
        return self.max_model_len - 1 - self.num_tail_rows

    @cached_property
    def audio_start_limit(self) -> int:
        """The last position at which the audio segment may begin and leave room for a frame and the tail."""
        return self.audio_limit - self.num_closing_rows - 1

    def text_limit(self, task: Task) -> int:
        """The last position at which the text segment may end and leave room for all that must follow."""
        if Segment.AUDIO not in task.segments:
            return self.max_model_len - 1
        return self.audio_start_limit - len(self.family.transition) - 1

    def end_of_text(self, task: Task) -> int | None:
        """What stands in the row that closes the text segment of `task`; None: what was drawn, if anything was."""
        return self.family.end_of_text if Segment.AUDIO in task.segments else self.family.end_of_reply

    def drawn_ends_of_text(self, task: Task) -> tuple[int, ...]:
        """What the model draws to close the text segment of `task`: any of these; none where it writes no text."""
        if task.segments[0] is Segment.AUDIO:
            return ()
        if self.family.drawn_ends:
            return self.family.drawn_ends
        end = self.end_of_text(task)
        assert end is not None, f"{self.family.name}: nothing ends its text"
        return (end,)

    @cached_property
    def drawn_ends_of_audio(self) -> tuple[int, ...]:
        """What the model draws on stream 0 to close the audio segment: any of these; none where a frame does."""
        if self.family.end_frame:
            return ()
        return self.family.drawn_ends or (self.family.end_of_audio,)

    @cached_property
    def num_end_columns(self) -> tuple[int, int]:
        """Of a head in audio, how many of the last columns are ends, which may not come before the shortest length: of
        stream 0, and of each of the others."""
        return (1, 1) if self.family.staircase else (len(self.drawn_ends_of_audio), 0)

    def cut_of_text(self, task: Task) -> int:
        """What stands in the row in which a limit closes the text segment of `task`."""
        end = self.end_of_text(task)
        return self.family.transition[0] if end is None else end

    def closings(self, task: Task) -> dict[int, int]:
        """What may stand in the row after which the text of `task` is over, and how many rows on audio may begin."""
        end, num_rows = self.end_of_text(task), 1 + len(self.family.transition)
        if end is not None:
            return {end: num_rows}
        return dict.fromkeys(self.family.drawn_ends, num_rows) | {self.cut_of_text(task): num_rows - 1}

    @cached_property
    def least_rows_to_audio(self) -> int:
        """How many rows on audio begins, at the earliest, behind the row that closes a text."""
        tasks = [task for task in self.family.tasks if task.segments == (Segment.TEXT, Segment.AUDIO)]
        return min((rows for task in tasks for rows in self.closings(task).values()), default=self.max_model_len)

    def audio_ids(self, stream: int) -> list[int]:
        """All ids that output stream `stream` may carry in an audio segment, but its ends, in order; none if there is
        no such segment."""
        layout = self.family.layout
        if not any(Segment.AUDIO in task.segments for task in self.family.tasks):
            return []
        return sorted({*layout.audio[stream], *(layout.extra[stream] if layout.extra else ())})

    def max_guided_rows(self, sampling: SamplingConfig) -> int | None:
        """How many audio rows, counted from the first, are guided; None where their number is not limited.

        Guidance ends with a step: where one says several rows, with the last of them.
        """
        if sampling.guided_until_s is None:
            return None
        # The small term keeps 0.28 s at 25 Hz at 7 rows, which floating point takes to 7.000000000000001.
        num_rows = math.ceil(sampling.guided_until_s * self.family.frame_rate - 1e-6)
        schedule = self.schedule(sampling)
        return num_rows if schedule is None else schedule.next_step(num_rows)

    def schedule(self, sampling: SamplingConfig) -> BurstSchedule | None:
        """Which rows of a reply the modules say; None where the model has none."""
        return None if self.family.bursts is None else self.family.bursts.schedule(sampling.schedule)

    def num_extra(self, schedule: BurstSchedule | None, num_prompt_rows: int, num_rows: int) -> int:
        """How many rows modules say behind the row that a model says once it has read `num_rows`, prompt included."""
        if schedule is None:
            return 0
        return min(schedule.num_extra(num_rows - num_prompt_rows), self.max_model_len - 1 - num_rows)

    @cached_property
    def max_rows_per_step(self) -> int:
        """The most rows that a reply says, and so reads, in one step behind its prompt."""
        return 1 if self.family.bursts is None else 1 + self.family.bursts.num_modules

    @cached_property
    def num_open_rows(self) -> int:
        """How many of the last rows read modules may read again, and so change what is kept of them."""
        return 0 if self.family.bursts is None else self.family.bursts.window

    def track(self, first_row: int, ids: Sequence[int], is_open: bool = False) -> Track | None:
        """The text track of a reply that begins at `first_row`, or its positions; None where the family has none."""
        track, positions = self.family.text_track, self.family.positions
        if positions is not None:
            known = positions.ids[: self.max_model_len - first_row]
            return Track(positions.stream - 1, first_row, list(known), self.family.layout.pad_id)
        return None if track is None else Track(track.stream - 1, first_row, list(ids), track.pad_id, is_open, is_open)

    @cached_property
    def max_entries(self) -> int:
        """How many script entries a reply may hold; 0 without a script."""
        return self.family.script.max_entries if self.family.script else 0

    @cached_property
    def counted_ids(self) -> range:
        """The ids of stream 0 that a repetition penalty may count: those of text or, where none is written, codes and
        what may come in their place, as far as these ids follow each other."""
        if self.num_text_ids:
            return range(self.num_text_ids)
        codes, others = self.family.layout.audio[0], {token for ids in self.family.layout.extra[:1] for token in ids}
        return range(codes.start, next(token for token in count(codes.stop) if token not in others))

    @cached_property
    def num_text_ids(self) -> int:
        """Token ids below this are all that the model may draw in a text segment; 0 where no task has one."""
        stops = [ids.stop for task in self.family.tasks for ids in task.text]
        ends = [1 + token for task in self.family.tasks for token in self.drawn_ends_of_text(task)]
        return max(stops + ends, default=0)
