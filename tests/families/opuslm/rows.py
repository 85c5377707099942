"""Frames and their rows for tests of OpusLM prompts, with the ids of `tests/small_vocabularies.py`."""

import numpy as np

from stretto.families.opuslm.prompt import SegmentWriter
from stretto.family.base import Family
from stretto.family.text import Subwords
from tests.fakes import FrameCounter
from tests.families.letters import Letters

CODES = np.array([[5, 6], *([stream, stream + 1] for stream in range(8))])  # [9, 2]
GAP = [[0] * 9] * 8
# CODES as rows: semantic ids from 256, those of codebook k from 276 + 12 k, stream s trailing by s rows.
FRAMES = [
    [261, 0, 0, 0, 0, 0, 0, 0, 0],
    [262, 276, 0, 0, 0, 0, 0, 0, 0],
    [0, 277, 289, 0, 0, 0, 0, 0, 0],
    [0, 0, 290, 302, 0, 0, 0, 0, 0],
    [0, 0, 0, 303, 315, 0, 0, 0, 0],
    [0, 0, 0, 0, 316, 328, 0, 0, 0],
    [0, 0, 0, 0, 0, 329, 341, 0, 0],
    [0, 0, 0, 0, 0, 0, 342, 354, 0],
    [0, 0, 0, 0, 0, 0, 0, 355, 367],
    [0, 0, 0, 0, 0, 0, 0, 0, 368],
]
VOICE = FRAMES + [[0] * 9] * 498


def text(*ids: int) -> list[list[int]]:
    """Return rows that carry `ids` on stream 0."""
    return [[token_id] + [0] * 8 for token_id in ids]


def segments(family: Family) -> SegmentWriter:
    """Return a segment writer for letters, without an audio tokenizer."""
    return SegmentWriter(family, Subwords(Letters(), family), FrameCounter(320, 8, 12), None)
