"""The rules that a reply follows, derived once from its family and the model length.

The host (`tracker.py`) and the device (`worker/segment_state.py`) walk through the segments by the same rules.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from stretto.families.base import Family, Task
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

    def end_of_text(self, task: Task) -> int:
        """What stands in the row that closes the text segment of `task`."""
        family = self.family
        if Segment.AUDIO not in task.segments:
            return family.end_of_reply
        return family.end_of_text if family.written_end_of_text is None else family.written_end_of_text

    def drawn_end_of_text(self, task: Task) -> int:
        """What the model draws to close the text segment of `task`."""
        family = self.family
        if Segment.AUDIO in task.segments:
            return family.end_of_text
        return family.end_of_reply if family.end_of_lone_text is None else family.end_of_lone_text

    def audio_ids(self, stream: int) -> list[int]:
        """All ids that output stream `stream` may carry in an audio segment, but `end_of_audio`, in order."""
        layout = self.family.layout
        return sorted({*layout.audio[stream], *(layout.extra[stream] if layout.extra else ())})

    def max_guided_rows(self, sampling: SamplingConfig) -> int | None:
        """How many audio rows, counted from the first, are guided; None where their number is not limited."""
        if sampling.guided_until_s is None:
            return None
        # The small term keeps 0.28 s at 25 Hz at 7 rows, which floating point takes to 7.000000000000001.
        return math.ceil(sampling.guided_until_s * self.family.frame_rate - 1e-6)

    @cached_property
    def max_entries(self) -> int:
        """How many script entries a reply may hold; 0 without a script."""
        return self.family.script.max_entries if self.family.script else 0

    @cached_property
    def num_text_ids(self) -> int:
        """Token ids below this are all that the model may draw in a text segment."""
        stops = [ids.stop for task in self.family.tasks for ids in task.text]
        return max(*stops, *(self.drawn_end_of_text(task) + 1 for task in self.family.tasks))
