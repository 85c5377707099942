"""Given rows of replies, written in numpy or torch arrays, or by a kernel."""

import torch

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.rules import STATE, with_where
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import Array, Arrays, SlotTables
from stretto_cosyvoice3.family import TextGroups
from stretto_cosyvoice3.mechanism import rules as group_rules
from stretto_cosyvoice3.mechanism.kernel import GroupRules, groups_kernel


class GroupStates:
    """State of the given rows in all slots, advanced by one row per call."""

    def __init__(self, groups: TextGroups, rules: SegmentRules, tables: SlotTables, arrays: Arrays):
        self._groups = groups
        self._arrays = arrays
        self._where = arrays.xp.where
        self._rules = with_where(arrays.xp.where, group_rules.__name__)
        self._common = arrays.rules
        self._constants = rules.constants
        self._pad_id = rules.family.layout.pad_id
        self._state = arrays.wrap(tables.state)[:, len(STATE) :]
        self._codes = arrays.wrap(tables.codes)
        self._lane = rules.family.track_streams.start - 1

    def __call__(self, token: Array, rows: Rows) -> Array:
        """Return stream 0 of each row, [B], and write the text stream to the slot tables."""
        limits = rows.limits
        slots = rows.slots
        position = rows.position
        is_over = self._common.meets_limit(rows.frame, limits.audio_max, position, self._constants)
        num_given, num_in_group, num_first = self._state[slots].T
        token, is_given, after, num_in_group = self._rules.lay_row(
            token, rows.in_audio & ~is_over, num_given, num_in_group, num_first, limits.track_total,
            self._constants.end_of_audio, self._groups,
        )  # fmt: skip
        words = self._where(is_given, -1 - num_given, self._pad_id)
        self._codes[slots, position, self._lane] = self._arrays.int32(words)
        self._state[slots] = self._arrays.stack([after, num_in_group, num_first])
        return token


class GroupLaunch:
    """Launch of `groups_kernel`, which does for the rows of a step what `GroupStates` does."""

    def __init__(self, groups: TextGroups, rules: SegmentRules, tables: SlotTables, num_rows: int):
        self._tables = tables
        self._rules = GroupRules(
            groups=groups,
            family=rules.constants,
            num_rows=num_rows,
            lane=rules.family.track_streams.start - 1,
            state_stride=tables.state.stride(0),
            codes_stride=tables.codes.stride(0),
            num_others=rules.family.layout.num_input_streams - 1,
        )

    def __call__(self, drawn: torch.Tensor, plan: torch.Tensor, lengths: torch.Tensor, num_rows: int) -> None:
        """Replace sampled ids of stream 0, int32 [N, 1], with the ids that the rows must contain.

        Args:
            plan: Step table (`step_draw.py`).
            lengths: Positions of the rows, int32 [N].
        """
        tables = self._tables
        groups_kernel[num_rows,](drawn, tables.codes, tables.state, plan, lengths, self._rules, num_warps=1)
