"""The rules that a reply follows, derived once from its family and the model length.

The host (`tracker.py`) and the device (`machine.py`) walk through the segments by the same rules.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from python_backend.families.base import Family, Task
from python_backend.sampling.params import SamplingConfig
from python_backend.streams.segment import Segment


@dataclass(frozen=True)
class SegmentRules:
    """What is fixed for every reply of a family in a model of `max_model_len` rows. Positions count from 0."""

    family: Family
    max_model_len: int

    @cached_property
    def task_index(self) -> dict[str, int]:
        return {task.name: index for index, task in enumerate(self.family.tasks)}

    @cached_property
    def tail(self) -> int:
        """Rows from `end_of_audio` to `end_of_reply`, where there is a frame to drain."""
        return max(1, self.family.layout.max_delay - 1)

    @cached_property
    def audio_limit(self) -> int:
        """The last position at which `end_of_audio` leaves room for the drain."""
        return self.max_model_len - 1 - self.tail

    def text_limit(self, task: Task) -> int:
        """The last position at which the text segment may end and leave room for all that must follow."""
        if Segment.AUDIO not in task.segments:
            return self.max_model_len - 1
        return self.audio_limit - len(self.family.transition) - 2

    def end_of_text(self, task: Task) -> int:
        """The token that closes the text segment of `task`."""
        return self.family.end_of_text if Segment.AUDIO in task.segments else self.family.end_of_reply

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
        """Token ids below this are all that stream 0 may carry outside its audio interval."""
        family = self.family
        stops = [ids.stop for task in family.tasks for ids in task.text]
        return max(*stops, *(token + 1 for token in (family.end_of_text, family.end_of_reply)))
