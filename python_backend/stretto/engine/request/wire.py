"""A reply on its way from the scheduler to the front end, as token ids: vLLM merges those without losing any.

A row is the ids of all output streams, stream 0 first. A mark, which is no token id, stands before the first row that
is drawn without guidance and before the first that is drawn with it again: an always guided reply has none. Behind the
last row follows the trailer.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

GUIDANCE_OFF, GUIDANCE_ON = -1, -2


class Trailer(NamedTuple):
    """What the scheduler knows of a reply that has ended."""

    num_guided_frames: int
    num_preemptions: int
    was_cut: int  # 1 where a limit ended a segment that the model had not ended
    queue_us: int


def read_rows(ids: Sequence[int], num_streams: int) -> Iterator[tuple[Sequence[int], bool | None]]:
    """The rows in `ids`, [num_streams] each; with each, whether it is guided where that changes, else None."""
    start = 0
    while start < len(ids):
        is_guided = None
        if ids[start] < 0:
            is_guided = ids[start] == GUIDANCE_ON
            start += 1
        yield ids[start : start + num_streams], is_guided
        start += num_streams
