"""Format in which a reply travels from the scheduler to the front end: token ids, which vLLM merges without loss.

A row is a guidance mark and the ids of all output streams, stream 0 first. The mark tells whether guidance stops or
resumes at that row. An always guided reply has no marks. The trailer follows the last row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NO_CHANGE, GUIDANCE_OFF, GUIDANCE_ON = 0, 1, 2


class Trailer(NamedTuple):
    """Statistics of a finished reply.

    Attributes:
        num_guided_frames: Number of guided frames.
        num_preemptions: Number of preemptions.
        was_cut: 1 if a length limit ended a segment before the model did.
        queue_us: Time in the queue, in microseconds.
        held_us: Time blocked on streamed text, in microseconds.
    """

    num_guided_frames: int
    num_preemptions: int
    was_cut: int
    queue_us: int
    held_us: int


def read_rows(ids: Sequence[int], num_streams: int) -> np.ndarray:
    """Return the rows in `ids` as int64 [n, 1 + num_streams]: the mark, then the streams."""
    return np.array(ids, np.int64).reshape(-1, 1 + num_streams)
