"""A reply on its way from the scheduler to the front end, as token ids: vLLM merges those without losing any.

A row is a mark and the ids of all output streams, stream 0 first. The mark says whether the row is the first that is
drawn without guidance, or the first that is drawn with it again; an always guided reply has none. Behind the last row
follows the trailer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NO_CHANGE, GUIDANCE_OFF, GUIDANCE_ON = 0, 1, 2


class Trailer(NamedTuple):
    """What the scheduler knows of a reply that has ended; held_us: how long it waited for words to be spoken."""

    num_guided_frames: int
    num_preemptions: int
    was_cut: int  # 1 where a limit ended a segment that the model had not ended
    queue_us: int
    held_us: int


def read_rows(ids: Sequence[int], num_streams: int) -> np.ndarray:
    """The rows in `ids`, [n, 1 + num_streams]: the mark, then the streams."""
    return np.array(ids, np.int64).reshape(-1, 1 + num_streams)
