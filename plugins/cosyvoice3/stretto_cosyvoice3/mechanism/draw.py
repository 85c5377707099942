"""Sampling of codes between rows with text (`TextGroups`).

Top-p applies to the probabilities of all ids, and a repeated code is sampled again without it. In other families, top-p
applies to the probabilities of the ids that top-k keeps, and a code may be repeated.
"""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import triton
import triton.language as tl

from stretto.engine.kernels.draw import draw
from stretto.engine.kernels.gpu.step_draw import SAMPLING_FUNCTIONS, nucleus_of, top_k_floor
from stretto.engine.reply_rules import SegmentRules
from stretto.engine.rules import STATE, with_where
from stretto.engine.sampling.parameters import DrawParams
from stretto.engine.worker.batch_plan import BatchPlan, PlanArrays
from stretto.engine.worker.predictors import Readout
from stretto.engine.worker.sampler import RecentRows, RepetitionGuard, RowDraw
from stretto.engine.worker.segment_state import Rows, SegmentState
from stretto.engine.worker.slots import Array, Arrays, SlotTables
from stretto.engine.worker.step_program import StepProgram
from stretto_cosyvoice3.family import CodeRules, TextGroups
from stretto_cosyvoice3.mechanism import rules as group_rules
from stretto_cosyvoice3.mechanism.groups import GroupLaunch, GroupStates
from stretto_cosyvoice3.mechanism.kernel import hidden_ends, repeated


class GroupGuard(RepetitionGuard):
    """Guard against repeats, which counts only the first row of a run of given rows.

    The id that ends a group is sampled again like a code.
    """

    def __init__(self, groups: TextGroups, *arguments: Any):
        super().__init__(*arguments)
        self._groups = groups

    def recent(self, rows: Rows, index: Array | None, window: int) -> RecentRows:
        recent = super().recent(rows, index, window * self._groups.num_words)
        counts = recent.counts & (self.tokens[recent.slots, recent.positions] != self._groups.given_id)
        latest = counts.int().sort(dim=1, descending=True, stable=True).indices[:, :window]
        return replace(recent, positions=recent.positions.gather(1, latest), counts=counts.gather(1, latest))

    def is_guarded(self, drawn: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
        return super().is_guarded(drawn, codebooks) | (drawn == self._groups.fill_id)


class CodeDraw(RowDraw):
    """Sampler of codes and given rows, in numpy or torch."""

    _params: tuple[DrawParams, DrawParams] | None = None  # parameters of the last step, and a copy with `of_all`

    def __init__(
        self,
        code_rules: CodeRules,
        readout: Readout,
        segments: SegmentState,
        tables: SlotTables,
        arrays: Arrays,
        tokens: torch.Tensor,
    ):
        super().__init__(readout, segments, tables, arrays, tokens)
        self.guard = GroupGuard(code_rules.groups, tokens, tables, segments.family, arrays)
        self._rules = with_where(arrays.xp.where, group_rules.__name__)
        self._num_given = arrays.wrap(tables.state)[:, len(STATE)]
        self._states = GroupStates(code_rules.groups, segments.rules, tables, arrays)
        self._is_fill = arrays.upload(np.array(segments.rules.drawn_ends_of_audio) == code_rules.groups.fill_id)

    def replace_first(self, token: Array, rows: Rows) -> Array:
        return self._states(token, rows)

    def hidden_ends(self, rows: Rows) -> Array:
        is_short = rows.frame < rows.limits.audio_min
        is_free = self._num_given[rows.slots] >= rows.limits.track_total
        hidden: Array = self._rules.hides_end(self._is_fill, is_short[:, None], is_free[:, None])
        return hidden

    def chosen(
        self, logits: torch.Tensor, keys: torch.Tensor, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> torch.Tensor:
        # Kept, because parameters cache arrays while the batch is the same.
        if self._params is None or self._params[0] is not step.audio:
            self._params = step.audio, replace(step.audio, of_all=True)
        return draw(logits[:, None], self.heads.first_ids[None], keys, self._params[1], plan.audio)

    def redrawn_from(self, logits: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        return logits.masked_fill(self.heads.first_ids == drawn, -torch.inf)


@triton.jit
def _kept(
    values: tl.tensor, num_columns: tl.tensor, temperature: tl.tensor, top_k: tl.tensor, top_p: tl.tensor,
    is_seen: tl.tensor, penalty: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Return the logits, and the smallest one that top-k, and top-p over all ids, keep."""
    floor = tl.max(values, 0)
    if temperature > 0:
        floor = top_k_floor(values, num_columns, top_k)
        if top_p < 1:
            lowest = tl.full((), float("-inf"), tl.float32)
            floor = tl.maximum(floor, nucleus_of(values, lowest, temperature, top_p))
    return values, floor


@triton.jit
def _redrawn_from(
    values: tl.tensor, columns: tl.tensor, repeated: tl.tensor, num_columns: tl.tensor, top_k: tl.tensor,
    constants: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    return tl.where(columns == repeated, float("-inf"), values)


class CodeProgram(StepProgram):
    """GPU kernels that sample codes and write given rows."""

    sampling_functions: ClassVar = SAMPLING_FUNCTIONS._replace(
        kept=_kept, redrawn_from=_redrawn_from, hidden_ends=hidden_ends, repeated=repeated
    )

    def __init__(self, code_rules: CodeRules, readout: Readout, rules: SegmentRules, *arguments: Any):
        super().__init__(readout, rules, *arguments)
        self.rule_constants = code_rules.groups
        self._groups = GroupLaunch(code_rules.groups, rules, self.tables, self.num_rows)

    def replace_first(self, num_rows: int) -> None:
        self._groups(self.first.drawn, self.columns.table, self.lengths, num_rows)
