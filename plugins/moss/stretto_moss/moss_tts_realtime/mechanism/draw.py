"""Repetition penalty on the ids that each stream has in the last rows of a reply's audio.

In other families, the penalty applies to one stream and counts the ids of the whole reply, in a table. Here no such
table is needed, because the codes of the last rows are in the slot tables.
"""

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from stretto.engine.kernels.gpu.step_draw import SAMPLING_FUNCTIONS
from stretto.engine.reply_rules import SegmentRules
from stretto.engine.sampling.repetition import penalize
from stretto.engine.worker.batch_plan import BatchPlan, PlanArrays
from stretto.engine.worker.predictors import Readout
from stretto.engine.worker.sampler import RecentRows, RowDraw, pick
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import Array
from stretto.engine.worker.step_program import StepProgram
from stretto_moss.moss_tts_realtime.family import RecentPenalty


class RecentDraw(RowDraw):
    """Sampler of rows with the penalty on recent ids, in numpy or torch."""

    _recent: RecentRows  # rows before those that are being sampled
    _penalty: torch.Tensor

    def __init__(self, penalty: RecentPenalty, *arguments: Any):
        super().__init__(*arguments)
        codebooks = self.segments.family.layout.audio
        device = self.tables.state.device
        self._num_rows = penalty.num_recent_rows
        self._starts = torch.tensor([ids.start for ids in codebooks], device=device)
        self._sizes = torch.tensor([len(ids) for ids in codebooks], device=device)

    def draw_audio(
        self, hidden: torch.Tensor, keys: np.ndarray, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> tuple[Array, Array]:
        num_rows = self._num_rows
        if self.arrays.xp is np:  # on a GPU, the host would wait for the length of the longest reply
            begun = np.maximum(pick(rows.state.audio_start, step.speaking), 0)
            longest = int((pick(rows.position, step.speaking) - begun).max(initial=1))
            num_rows = min(num_rows, longest)
        self._recent = self.guard.recent(rows, step.speaking, num_rows)
        self._penalty = self.arrays.tensor(pick(rows.scales.options["repetition_penalty"], step.speaking))
        return super().draw_audio(hidden, keys, plan, step, rows)

    def penalized(self, logits: torch.Tensor, rows: Rows, index: Array | None) -> torch.Tensor:
        history = self.guard.tokens[self._recent.slots, self._recent.positions, None]
        return self._with_recent(logits[:, None], history, slice(0, 1))[:, 0]

    def penalized_others(self, logits: torch.Tensor, rows: Rows, index: Array | None, streams: slice) -> torch.Tensor:
        first, last, _ = streams.indices(len(self._starts) - 1)
        history = self.tables.codes[self._recent.slots, self._recent.positions, first:last]
        return self._with_recent(logits, history, slice(first + 1, last + 1))

    def _with_recent(self, logits: torch.Tensor, history: torch.Tensor, streams: slice) -> torch.Tensor:
        """Return logits [A, k, C], codes first, with the penalty on the ids of the last rows [A, W, k]."""
        num_rows, num_streams, num_columns = logits.shape
        columns = history - self._starts[streams]
        is_code = self._recent.counts[..., None] & (columns >= 0) & (columns < self._sizes[streams])
        columns = torch.where(is_code, columns, num_columns)  # the last column of the table is for other ids
        is_seen = torch.zeros(num_rows, num_streams, num_columns + 1, dtype=torch.bool, device=logits.device)
        is_seen.scatter_(2, columns.transpose(1, 2).long(), True)
        lines = num_rows * num_streams
        flat = penalize(
            logits.reshape(lines, num_columns),
            is_seen[..., :-1].reshape(lines, num_columns),
            self._penalty.repeat_interleave(num_streams, output_size=lines),
        )
        return flat.view_as(logits)


class KernelConstants(NamedTuple):
    """Constants of the penalty for kernels."""

    num_rows: int


BLOCK = tl.constexpr(8)  # rows that are loaded at once, because each is compared with all ids of a stream


@triton.jit
def _counted(
    ids: tl.tensor, history: tl.tensor, position: tl.tensor, audio_start: tl.tensor, row_stride: tl.constexpr,
    constants: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return True for each of `ids` that a stream has in its last rows; see `SamplingFunctions.counted`."""
    is_counted = ids < 0
    lanes = tl.arange(0, BLOCK)
    for start in range(tl.maximum(audio_start, position - constants.num_rows), position, BLOCK):
        tokens = tl.load(history + (start + lanes) * row_stride, mask=start + lanes < position, other=-1)
        is_counted = is_counted | (tl.max((tokens[:, None] == ids[None, :]).to(tl.int32), 0) > 0)
    return is_counted


class RecentProgram(StepProgram):
    """Kernel launches that sample a step with the penalty on recent ids."""

    sampling_functions: ClassVar = SAMPLING_FUNCTIONS._replace(counted=_counted)
    other_functions: ClassVar = sampling_functions

    def __init__(self, penalty: RecentPenalty, readout: Readout, rules: SegmentRules, *arguments: Any):
        super().__init__(readout, rules, *arguments)
        self.rule_constants = KernelConstants(penalty.num_recent_rows)
