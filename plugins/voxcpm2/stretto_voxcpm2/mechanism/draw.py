"""Sampling of rows whose latent predictor is guided within the row and reads the latent of the row before."""

from typing import Any, ClassVar

import torch
import triton
import triton.language as tl

from stretto.engine.kernels.gpu.step_draw import SLOT
from stretto.engine.worker.batch_plan import SolverPlan
from stretto.engine.worker.latent_draw import LatentDraw, LatentStepProgram
from stretto.engine.worker.sampler import pick
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import Array
from stretto.family.base import DrawRules


class GuidedDraw(LatentDraw):
    """Sampler of rows like `LatentDraw`, with a `GuidedLatentPredictor`."""

    def __init__(self, rules: DrawRules, *arguments: Any):
        super().__init__(*arguments)

    def words(
        self,
        hidden: torch.Tensor,
        noise: torch.Tensor,
        steps: torch.Tensor,
        solver: SolverPlan,
        rows: Rows,
        index: Array | None,
    ) -> torch.Tensor:
        """Return the words. The predictor also reads the previous latents and the guidance scales."""
        before = self.codes[pick(rows.slots, index), pick(rows.position, index) - 1]
        before = self.arrays.tensor(before)[:, : self.segments.family.latent_size].contiguous().view(torch.float32)
        scale = self.arrays.tensor(pick(rows.scales.guidance, index))
        words: torch.Tensor = self.predict(hidden, noise, steps, solver, before, scale)
        return words.contiguous().view(torch.int32)


class GuidedProgram(LatentStepProgram):
    """Kernel launches that sample a step, with the same result as `GuidedDraw`."""

    may_guide: ClassVar[bool] = True

    def __init__(self, rules: DrawRules, *arguments: Any):
        super().__init__(*arguments)
        self._before = torch.zeros_like(self.noise)

    def words(self, hidden: torch.Tensor, noise: torch.Tensor, steps: torch.Tensor, solver: SolverPlan) -> torch.Tensor:
        number, size = noise.shape
        previous_latents_kernel[number,](
            self._before, self.columns.table, self.lengths, self.tables.codes, self.constants.rules, size,
            triton.next_power_of_2(max(size, 2)), num_warps=1,
        )  # fmt: skip
        context = self._before[:number], self.guidance[:number]
        words: Any = self.predict(hidden, noise, steps, solver, *context)
        return words.contiguous().view(torch.int32)


@triton.jit
def previous_latents_kernel(
    before: tl.tensor,  # [N, D] float32, written: latent of the previous row; zeros if it has none
    plan: tl.tensor,  # `step_draw.py`, [C, N] int32
    lengths: tl.tensor,  # [N] int32
    codes: tl.tensor,  # [R, T + 1, S - 1] int32
    rules: tl.constexpr,  # `StepRules`
    size: tl.constexpr,  # D
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    lanes = tl.arange(0, block)
    slot = tl.load(plan + SLOT * rules.num_rows + row).to(tl.int64)
    previous = tl.maximum(tl.load(lengths + row).to(tl.int64) - 1, 0)
    previous_words = codes + slot * rules.codes_stride + previous * rules.num_others + lanes
    words = tl.load(previous_words, mask=lanes < size, other=0)
    tl.store(before + row * size + lanes, words.to(tl.float32, bitcast=True), mask=lanes < size)
