"""Movement of the alignment pointer in numpy or torch, and the launch of the GPU kernel that does the same."""

from typing import Any, ClassVar

import numpy as np
import torch
import triton

from stretto.engine.kernels.gpu.advance import RowFunctions
from stretto.engine.reply_rules import SegmentRules
from stretto.engine.rules import STATE, with_where
from stretto.engine.sampling.noise import uniform
from stretto.engine.worker.batch_plan import BatchPlan, PlanArrays
from stretto.engine.worker.predictors import Readout
from stretto.engine.worker.sampler import RecentRows, RowDraw, pick
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import Array, SlotTables
from stretto.engine.worker.step_program import EXACT, StepProgram
from stretto.families.tiny.family import AlignmentPointer
from stretto.families.tiny.mechanism import rules as script_rules
from stretto.families.tiny.mechanism.kernel import draw_script_kernel, finish_row, text_is_full


def advances(
    logits: torch.Tensor, stay: torch.Tensor, temperature: torch.Tensor, uniform: torch.Tensor
) -> torch.Tensor:
    """Return True for each row in which the alignment pointer advances, bool [B].

    The probability of advancing is 1 - P(stay).

    Args:
        logits: Logits of all ids of stream 0 in an audio row, float32 [B, C].
        stay: Column of the id that means "stay", [B].
        temperature: Divisor of the log odds, [B]; at 0 the pointer advances if P(advance) > 1/2.
        uniform: Noise in (0, 1), [B].
    """
    log_stay = logits.log_softmax(-1).gather(-1, stay[:, None]).squeeze(-1)
    log_odds = torch.log(-torch.expm1(log_stay)) - log_stay
    is_random = temperature > 0
    # torch.sigmoid rounds the last elements of a batch otherwise; its exponential rounds all equally.
    probability = 1 / (1 + torch.exp(-log_odds / torch.where(is_random, temperature, 1.0)))
    return probability > torch.where(is_random, uniform, 0.5)


class ScriptDraw(RowDraw):
    """Sampler of rows in numpy or torch, which moves the pointer instead of sampling stream 0 of audio."""

    def __init__(self, script: AlignmentPointer, *arguments: Any):
        super().__init__(*arguments)
        self._ids = script.ids(self.segments.rules)
        self._rules = with_where(self.arrays.xp.where, script_rules.__name__)
        wrap = self.arrays.wrap
        self._state = wrap(self.tables.state)[:, len(STATE) :]
        self._entries = wrap(self.tables.texts)

    def text_is_full(self, rows: Rows) -> Array:
        """Return True for texts with the maximum number of entries, [B]."""
        return self._state[rows.slots, 0] >= self._ids.max_entries

    def draw_first(
        self,
        logits: torch.Tensor,
        keys: np.ndarray,
        plan: BatchPlan,
        step: PlanArrays,
        rows: Rows,
        recent: RecentRows | None,
    ) -> Array:
        """Move the pointers, and return stream 0 of audio rows, [M]; ids of other rows have no meaning."""
        index = step.speaking
        slots = rows.slots
        num_entries, pointer = self._state[slots].T
        stay = self._rules.stay_column(self._entries[slots, pointer], pointer, self._ids)
        temperature = self.arrays.tensor(pick(rows.scales.options["script_temperature"], index))
        noise = self.upload(uniform(keys[:, 0], np.zeros(1, np.int64)))
        advance = advances(logits, self.arrays.tensor(pick(stay, index)), temperature, noise)
        is_over = self.arrays.rules.meets_limit(
            rows.frame, rows.limits.audio_max, rows.position, self.segments.rules.constants
        )
        pointer, *flags = self._rules.move_pointer(
            self.spread(advance.long(), index, rows) > 0, pointer, num_entries, rows.frame >= rows.limits.audio_min,
            rows.in_audio & (is_over == 0),
        )  # fmt: skip
        self._state[slots, 1] = pointer
        return self._rules.pointer_token(self._entries[slots, pointer], *flags, self._ids)

    def finish_row(self, token: Array, laid: Array, plan: BatchPlan, rows: Rows) -> Array:
        """Return the other streams with the index stream, and add entries; see `RowDraw.finish_row`."""
        slots = rows.slots
        arrays = self.arrays
        num_entries, pointer = self._state[slots].T
        laid[:, self._ids.index_stream - 1] = self._rules.pointer_index(
            token, rows.in_text, rows.in_audio, num_entries, pointer, self._ids
        )
        if plan.may_write:
            is_entry = rows.in_text & self._rules.is_entry(token, self._ids)
            self._state[slots, 0] = num_entries = num_entries + is_entry
            self._entries[slots, num_entries * is_entry] = arrays.int32(token * is_entry)  # entry 0 is unused
        return laid


class ScriptProgram(StepProgram):
    """Kernel launches that sample a step."""

    row_functions: ClassVar = RowFunctions(text_is_full, finish_row)

    def __init__(
        self, script: AlignmentPointer, readout: Readout, rules: SegmentRules, tables: SlotTables, *arguments: Any
    ):
        super().__init__(readout, rules, tables, *arguments)
        self.rule_constants = script.ids(rules)

    def draw_first(self, logits: torch.Tensor) -> None:
        num_columns = logits.shape[1]
        tables = self.tables
        draw_script_kernel[len(logits),](
            self.first.drawn, logits, self.first.offset, self.columns.table, self.lengths, tables.state,
            tables.texts, logits.stride(0), self.num_rows, tables.state.stride(0), tables.texts.stride(0),
            self.rule_constants, self.constants.rules.family, num_columns, triton.next_power_of_2(num_columns), **EXACT,
        )  # fmt: skip
