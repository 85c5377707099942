"""Per-stream BOS and EOS ids under the delay pattern (`streams/pattern.py`), for the rows of a batch."""

import numpy as np
import torch

from stretto.engine.request.rules import SegmentRules
from stretto.engine.worker.arrays import Array, Arrays
from stretto.engine.worker.segment_state import Rows
from stretto.streams.pattern import Staircase


class Stairs:
    """Begin and end ids of streams that have their own."""

    def __init__(self, staircase: Staircase, rules: SegmentRules, arrays: Arrays):
        self._arrays, self._where, self._concatenate = arrays, arrays.xp.where, arrays.xp.concatenate
        self._begins, self._ends = arrays.upload(np.array(staircase.begin)), arrays.upload(np.array(staircase.end))
        self._delays = arrays.upload(np.array(rules.family.layout.delays))
        self._streams = arrays.upload(np.arange(len(staircase.end)))

    def mask_ends(self, logits: torch.Tensor, rows: Rows, index: Array | None) -> torch.Tensor:
        """Set end-id logits of streams 1 and up to -inf before the minimum length, in place: [A, k, C]."""
        is_short = rows.frame < rows.limits.audio_min
        is_short = self._arrays.tensor(is_short if index is None else is_short[index])
        logits[..., -1].masked_fill_(is_short[:, None], -torch.inf)
        return logits

    def climb(self, token: Array, codes: Array, rows: Rows) -> tuple[Array, Array]:
        """Return `token` and `codes` [B, K] with begin ids before a stream's first frame and end ids after its last.

        Records the position at which the first stream draws its own end.
        """
        state = rows.state
        num_ended = self._where(state.first_end < 0, 0, rows.position - state.first_end)
        said = self._concatenate([token[:, None], codes], 1)
        said = self._where(rows.frame[:, None] < self._delays, self._begins, said)
        said = self._where(self._streams < num_ended[:, None], self._ends, said)
        ends = rows.in_audio & (state.first_end < 0) & (said == self._ends).any(1)
        state.first_end = self._where(ends, rows.position, state.first_end)
        return said[:, 0], said[:, 1:]
