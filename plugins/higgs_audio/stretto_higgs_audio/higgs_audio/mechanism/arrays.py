"""Sampling of rows with begin and end ids of the streams, in arrays and in kernels."""

from typing import Any

import numpy as np
import torch
import triton

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.rules import STATE, with_where
from stretto.engine.worker.predictors import Readout
from stretto.engine.worker.sampler import RowDraw
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import Array
from stretto.engine.worker.step_program import StepProgram
from stretto_higgs_audio.higgs_audio.family import Staircase
from stretto_higgs_audio.higgs_audio.mechanism import rules as stair_rules
from stretto_higgs_audio.higgs_audio.mechanism.kernel import StairRules, stairs_kernel


class StairDraw(RowDraw):
    """Sampler in numpy or torch that writes begin and end ids outside each stream's frames."""

    def __init__(self, staircase: Staircase, *arguments: Any):
        super().__init__(*arguments)
        arrays = self.arrays
        self._rules = with_where(arrays.xp.where, stair_rules.__name__)
        self._concatenate = arrays.xp.concatenate
        self._begins = arrays.upload(np.array(staircase.begin))
        self._ends = arrays.upload(np.array(staircase.end))
        self._delays = arrays.upload(np.array(self.segments.family.layout.delays))
        self._streams = arrays.upload(np.arange(len(staircase.end)))
        self._first_end = arrays.wrap(self.tables.state)[:, len(STATE)]

    def replace_streams(self, token: Array, codes: Array, rows: Rows) -> tuple[Array, Array]:
        first_end = self._first_end[rows.slots]
        num_ended = self._rules.num_ended(rows.position, first_end)
        ids = self._concatenate([token[:, None], codes], 1)
        ids = self._rules.stair_id(
            ids, rows.frame[:, None], self._delays, self._begins, self._streams, num_ended[:, None], self._ends
        )
        is_end = rows.in_audio & (ids == self._ends).any(1)
        self._first_end[rows.slots] = self._rules.follow_end(is_end, rows.position, first_end)
        return ids[:, 0], ids[:, 1:]


class StairProgram(StepProgram):
    """GPU kernels that sample a step, with the same result as `StairDraw`."""

    def __init__(self, staircase: Staircase, readout: Readout, rules: SegmentRules, *arguments: Any):
        super().__init__(readout, rules, *arguments)
        ids = np.array([staircase.begin, staircase.end, rules.family.layout.delays], np.int64)
        state = self.tables.state
        self._ids = torch.from_numpy(ids).to(state.device)
        self._rules = StairRules(self.num_rows, len(staircase.end) - 1, state.stride(0))

    def replace_streams(self, num_rows: int) -> None:
        block = triton.next_power_of_2(max(self._rules.num_others, 2))
        stairs_kernel[num_rows,](
            self.first.drawn, self.others.drawn, self._ids, self.tables.state, self.columns.table, self.lengths,
            self._rules, block, num_warps=1,
        )  # fmt: skip
