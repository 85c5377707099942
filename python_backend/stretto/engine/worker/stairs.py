"""The staircase of a delay pattern (`streams/pattern.py`) for the rows of a batch."""

import numpy as np
import torch

from stretto.engine.request.rules import SegmentRules
from stretto.engine.worker.arrays import Array, Arrays
from stretto.engine.worker.segment_state import Rows
from stretto.streams.pattern import Staircase


class Stairs:
    """What streams carry that begin and end by ids of their own."""

    def __init__(self, staircase: Staircase, rules: SegmentRules, arrays: Arrays):
        self._arrays, self._where, self._concatenate = arrays, arrays.xp.where, arrays.xp.concatenate
        self._begins, self._ends = arrays.upload(np.array(staircase.begin)), arrays.upload(np.array(staircase.end))
        self._delays = arrays.upload(np.array(rules.family.layout.delays))
        self._streams = arrays.upload(np.arange(len(staircase.end)))

    def mask_ends(self, logits: torch.Tensor, rows: Rows, index: Array | None) -> torch.Tensor:
        """-inf on the ends of the streams 1 ..., the last column, before the shortest length, in place: [A, k, C]."""
        is_short = rows.frame < rows.limits.audio_min
        is_short = self._arrays.tensor(is_short if index is None else is_short[index])
        logits[..., -1].masked_fill_(is_short[:, None], -torch.inf)
        return logits

    def climb(self, token: Array, codes: Array, rows: Rows) -> tuple[Array, Array]:
        """`token` and `codes` [B, K], with the begin of streams before their first frame, and the end of those that the
        staircase has reached; notes where the first of them ends by itself."""
        state = rows.state
        num_ended = self._where(state.first_end < 0, 0, rows.position - state.first_end)
        said = self._concatenate([token[:, None], codes], 1)
        said = self._where(rows.frame[:, None] < self._delays, self._begins, said)
        said = self._where(self._streams < num_ended[:, None], self._ends, said)
        ends = rows.in_audio & (state.first_end < 0) & (said == self._ends).any(1)
        state.first_end = self._where(ends, rows.position, state.first_end)
        return said[:, 0], said[:, 1:]
