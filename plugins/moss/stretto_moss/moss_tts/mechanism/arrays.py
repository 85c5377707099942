"""Delay slots and pads in numpy or torch arrays, and the launch of the kernel that writes them."""

import numpy as np
import torch
import triton

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.rules import STATE, with_where
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import Array, Arrays, SlotTables
from stretto_moss.moss_tts.family import DelaySlots
from stretto_moss.moss_tts.mechanism import rules as slot_rules
from stretto_moss.moss_tts.mechanism.kernel import SlotRules, slots_kernel


class Slots:
    """Rule that replaces ids of the text stream after the first delay id, and codes outside each codebook's frames.

    Args:
        slots: Ids.
        rules: Rules of the family's replies.
        tables: Slot tables.
        arrays: Array factory.
    """

    def __init__(self, slots: DelaySlots, rules: SegmentRules, tables: SlotTables, arrays: Arrays):
        self._slots = slots
        self._rules = with_where(arrays.xp.where, slot_rules.__name__)
        self._pads = arrays.upload(np.array(slots.pads))
        self._codebooks = arrays.upload(np.arange(len(slots.pads)))
        self._delay_start = arrays.wrap(tables.state)[:, len(STATE)]

    def __call__(self, token: Array, codes: Array, rows: Rows) -> tuple[Array, Array]:
        """Return the text stream [B] and the codebooks [B, K].

        Args:
            token: Sampled ids of the text stream, [B].
            codes: Sampled codes, [B, K].
            rows: State of the rows.
        """
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


class SlotLaunch:
    """Launch of `slots_kernel`, which does for the rows of a step what `Slots` does.

    Args:
        slots: Ids.
        rules: Rules of the family's replies.
        tables: Slot tables.
        num_rows: Maximum number of rows in a step.
    """

    def __init__(self, slots: DelaySlots, rules: SegmentRules, tables: SlotTables, num_rows: int):
        self._state = tables.state
        self._pads = torch.tensor(slots.pads, device=tables.state.device)
        ids = slots.slot, slots.delay, slots.end
        self._rules = SlotRules(num_rows, len(slots.pads), tables.state.stride(0), *ids)

    def __call__(
        self, first: torch.Tensor, drawn: torch.Tensor, plan: torch.Tensor, lengths: torch.Tensor, num_rows: int
    ) -> None:
        """Replace the sampled ids, in place, with the ids that the rows must contain.

        Args:
            first: Sampled ids of the text stream, int32 [N, 1].
            drawn: Sampled codes, int32 [N, K].
            plan: Step table (`step_draw.py`).
            lengths: Positions of the rows, int32 [N].
            num_rows: Number of rows of the step.
        """
        block = triton.next_power_of_2(max(self._rules.num_codebooks, 2))
        slots_kernel[num_rows,](first, drawn, self._pads, self._state, plan, lengths, self._rules, block, num_warps=1)
