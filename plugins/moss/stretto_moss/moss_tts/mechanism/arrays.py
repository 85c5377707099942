"""Sampling of rows with delay slots and pads, in arrays and in kernels."""

from typing import Any

import numpy as np
import torch
import triton

from stretto.engine.rules import STATE, with_where
from stretto.engine.worker.sampler import RowDraw
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import Array
from stretto.engine.worker.step_program import StepProgram
from stretto_moss.moss_tts.family import DelaySlots
from stretto_moss.moss_tts.mechanism import rules as slot_rules
from stretto_moss.moss_tts.mechanism.kernel import SlotRules, slots_kernel


class SlotDraw(RowDraw):
    """Sampler of rows that replaces text ids after the first delay id, and codes outside each codebook's frames."""

    def __init__(self, slots: DelaySlots, *arguments: Any):
        super().__init__(*arguments)
        arrays = self.arrays
        self._slots = slots
        self._rules = with_where(arrays.xp.where, slot_rules.__name__)
        self._pads = arrays.upload(np.array(slots.pads))
        self._codebooks = arrays.upload(np.arange(len(slots.pads)))
        self._delay_start = arrays.wrap(self.tables.state)[:, len(STATE)]

    def replace_streams(self, token: Array, codes: Array, rows: Rows) -> tuple[Array, Array]:
        """Return the text stream [B] and the codebooks [B, K]."""
        slots = self._slots
        start = self._delay_start[rows.slots]
        since = self._rules.rows_since(rows.position, start)
        token = self._rules.slot_token(
            token, rows.frame, rows.limits.audio_min, since, len(slots.pads), slots.slot, slots.delay, slots.end
        )
        codes = self._rules.slot_code(codes, rows.frame[:, None], since[:, None], self._codebooks, self._pads)
        is_delay = rows.in_audio & (token == slots.delay)
        self._delay_start[rows.slots] = self._rules.follow_delay(is_delay, rows.position, start)
        return token, codes


class SlotProgram(StepProgram):
    """Kernel launches that sample a step, with the same result as `SlotDraw`."""

    def __init__(self, slots: DelaySlots, *arguments: Any):
        super().__init__(*arguments)
        state = self.tables.state
        self._pads = torch.tensor(slots.pads, device=state.device)
        ids = slots.slot, slots.delay, slots.end
        self._rules = SlotRules(self.num_rows, len(slots.pads), state.stride(0), *ids)

    def replace_streams(self, num_rows: int) -> None:
        block = triton.next_power_of_2(max(self._rules.num_codebooks, 2))
        slots_kernel[num_rows,](
            self.first.drawn, self.others.drawn, self._pads, self.tables.state, self.columns.table, self.lengths,
            self._rules, block, num_warps=1,
        )  # fmt: skip
