"""Sampling of codes: top-p applies to the probabilities of all ids, and a repeated code is sampled again without it.

In other families, top-p applies to the probabilities of the ids that top-k keeps, and a code may be repeated.
"""

from dataclasses import replace
from typing import Any, ClassVar

import torch
import triton
import triton.language as tl

from stretto.engine.kernels.draw import draw
from stretto.engine.kernels.gpu.step_draw import noisiest_of, nucleus_of, penalized, top_k_floor
from stretto.engine.worker.batch_plan import BatchPlan, PlanArrays
from stretto.engine.worker.sampler import RowDraw
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.step_program import StepProgram
from stretto.families.mechanism import Mechanism
from stretto.sampling import DrawParams


class CodeDraw(RowDraw):
    """Sampler of rows in numpy or torch."""

    _params: tuple[DrawParams, DrawParams] | None = None  # of the last step, and the same for all ids

    def choose(
        self, logits: torch.Tensor, keys: torch.Tensor, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> torch.Tensor:
        """Sample stream 0, [A, 1]; see `RowDraw.choose`."""
        if self._params is None or self._params[0] is not step.audio:  # they cache arrays while the batch is the same
            self._params = step.audio, replace(step.audio, of_all=True)
        return draw(logits[:, None], self._heads.first_ids[None], keys, self._params[1], plan.audio)

    def redrawn_from(self, logits: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Return the logits without those of the sampled ids; see `RowDraw.redrawn_from`."""
        return logits.masked_fill(self._heads.first_ids == drawn, -torch.inf)


@triton.jit
def _chosen(
    values: tl.tensor, ids: tl.tensor, key: tl.tensor, num_columns: tl.tensor, temperature: tl.tensor,
    top_k: tl.tensor, top_p: tl.tensor, span: tl.tensor, is_seen: tl.tensor, penalty: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """Return the column of the sampled id; see `chosen` of `step_draw.py`."""
    floor = tl.max(values, 0)
    if temperature > 0:
        lowest = floor - span
        floor = top_k_floor(values, num_columns, top_k, span)
        if top_p < 1:
            floor = tl.maximum(floor, nucleus_of(values, lowest, temperature, top_p))
    return noisiest_of(values, ids, key, temperature, floor)


@triton.jit
def _redrawn_from(values: tl.tensor, columns: tl.tensor, repeated: tl.tensor) -> tl.tensor:
    """Return the logits without that of the repeated id; see `redrawn_from` of `step_draw.py`."""
    return tl.where(columns == repeated, float("-inf"), values)


class CodeProgram(StepProgram):
    """Kernel launches that sample a step."""

    draw_rules: ClassVar = (penalized, _chosen, _redrawn_from)


def row_draw(mechanism: Mechanism, *given: Any) -> CodeDraw:
    """Return the sampler of rows (`Mechanism.row_draw`)."""
    return CodeDraw(*given[:-1])


def step_program(mechanism: Mechanism, *given: Any) -> CodeProgram:
    """Return the kernel launches (`Mechanism.step_program`)."""
    return CodeProgram(*given)
