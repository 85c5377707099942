"""Begin and end ids of the streams, in numpy or torch arrays, and the launch of the kernel that writes them."""

import numpy as np
import torch
import triton

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.rules import STATE, with_where
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import Array, Arrays, SlotTables
from stretto_higgs_audio.higgs_audio.family import Staircase
from stretto_higgs_audio.higgs_audio.mechanism import rules as stair_rules
from stretto_higgs_audio.higgs_audio.mechanism.kernel import StairRules, stairs_kernel


class Stairs:
    """Rule that replaces the sampled ids of a row outside each stream's frames.

    Args:
        staircase: Begin and end ids.
        rules: Rules of the family's replies.
        tables: Slot tables.
        arrays: Array factory.
    """

    def __init__(self, staircase: Staircase, rules: SegmentRules, tables: SlotTables, arrays: Arrays):
        self._rules = with_where(arrays.xp.where, stair_rules.__name__)
        self._concatenate = arrays.xp.concatenate
        self._begins = arrays.upload(np.array(staircase.begin))
        self._ends = arrays.upload(np.array(staircase.end))
        self._delays = arrays.upload(np.array(rules.family.layout.delays))
        self._streams = arrays.upload(np.arange(len(staircase.end)))
        self._first_end = arrays.wrap(tables.state)[:, len(STATE)]

    def __call__(self, token: Array, codes: Array, rows: Rows) -> tuple[Array, Array]:
        """Return stream 0 [B] and the other streams [B, K], with BOS and EOS ids outside each stream's frames.

        Args:
            token: Sampled ids of stream 0, [B].
            codes: Sampled ids of the other streams, [B, K].
            rows: State of the rows.
        """
        first_end = self._first_end[rows.slots]
        num_ended = self._rules.num_ended(rows.position, first_end)
        ids = self._concatenate([token[:, None], codes], 1)
        ids = self._rules.stair_id(
            ids, rows.frame[:, None], self._delays, self._begins, self._streams, num_ended[:, None], self._ends
        )
        is_end = rows.in_audio & (ids == self._ends).any(1)
        self._first_end[rows.slots] = self._rules.follow_end(is_end, rows.position, first_end)
        return ids[:, 0], ids[:, 1:]


class StairLaunch:
    """Launch of `stairs_kernel`, which does for the rows of a step what `Stairs` does.

    Args:
        staircase: Begin and end ids.
        rules: Rules of the family's replies.
        tables: Slot tables.
        num_rows: Maximum number of rows in a step.
    """

    def __init__(self, staircase: Staircase, rules: SegmentRules, tables: SlotTables, num_rows: int):
        ids = np.array([staircase.begin, staircase.end, rules.family.layout.delays], np.int64)
        self._state = tables.state
        self._ids = torch.from_numpy(ids).to(tables.state.device)
        self._rules = StairRules(num_rows, len(staircase.end) - 1, tables.state.stride(0))

    def __call__(
        self, first: torch.Tensor, drawn: torch.Tensor, plan: torch.Tensor, lengths: torch.Tensor, num_rows: int
    ) -> None:
        """Replace the sampled ids, in place, with the ids that the rows must contain.

        Args:
            first: Sampled ids of stream 0, int32 [N, 1].
            drawn: Sampled ids of the other streams, int32 [N, K].
            plan: Step table (`step_draw.py`).
            lengths: Positions of the rows, int32 [N].
            num_rows: Number of rows of the step.
        """
        block = triton.next_power_of_2(max(self._rules.num_others, 2))
        stairs_kernel[num_rows,](first, drawn, self._ids, self._state, plan, lengths, self._rules, block, num_warps=1)
