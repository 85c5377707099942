"""Sampling for families with latent frames."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import triton

from stretto.engine.columns import Array
from stretto.engine.kernels.gpu.step_latents import latent_inputs_kernel
from stretto.engine.reply_rules import SegmentRules
from stretto.engine.sampling.noise import gaussian
from stretto.engine.worker.batch_plan import BatchPlan, PlanArrays, SolverPlan
from stretto.engine.worker.predictors import LatentReadout
from stretto.engine.worker.sampler import RowDraw, pick
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import SlotTables
from stretto.engine.worker.step_program import EXACT, StepProgram, Variant


class LatentDraw(RowDraw):
    """Sampler of audio rows with latents: the most probable id on stream 0, and a latent from the predictor."""

    def __init__(self, readout: LatentReadout, *arguments: Any):
        super().__init__(readout, *arguments)
        self.predict: Any = readout.latents

    def draw_audio(
        self, hidden: torch.Tensor, keys: np.ndarray, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> tuple[Array, Array]:
        """Return the ids of stream 0 [M] and the latents as words [M, D], set only for rows that may be audio."""
        audio_hidden = hidden if step.audio_rows is None else hidden[step.audio_rows]
        logits = self.segments.mask_audio(self.heads.first(audio_hidden), rows, step.speaking)
        token = self.spread(self.heads.first_ids[logits.argmax(1)], step.speaking, rows)
        token = self.segments.count_down(self.segments.end_audio(token, rows), rows)
        # NumPy and GPUs round square roots correctly; torch on a CPU does not.
        deviation = self.arrays.xp.sqrt(pick(rows.scales.audio_temperature, step.speaking))
        noise = self.upload(gaussian(keys[:, 1:])) * self.arrays.tensor(deviation)[:, None]
        steps = self.arrays.tensor(pick(rows.limits.latent_steps, step.speaking)).clamp(min=1)
        words = self.words(audio_hidden, noise, steps, plan.solver, rows, step.speaking)
        return token, self.spread(words, step.speaking, rows)

    def words(
        self,
        hidden: torch.Tensor,
        noise: torch.Tensor,
        steps: torch.Tensor,
        solver: SolverPlan,
        rows: Rows,
        index: Array | None,
    ) -> torch.Tensor:
        """Return the latents of the rows `index` (None for all) as words, int32 [A, D] (see `LatentPredictor`)."""
        return self.predict(hidden, noise, steps, solver).contiguous().view(torch.int32)


class LatentStepProgram(StepProgram):
    """Kernel launches that sample a step for families with latent frames (see `StepProgram`).

    The predictor runs after stream 0 is sampled and before the state of the replies is updated. For each solver step
    count in `captured_steps`, one variant is captured without guidance and one with it if the predictor may be guided
    (`may_guide`).

    Args:
        tokens: Stream 0 of every slot by position, int32 [R, T].

    Attributes:
        noise: Noise of the rows, float32 [N, D].
        guidance: Guidance scales of the rows, float32 [N].
    """

    may_guide: ClassVar[bool] = False

    def __init__(
        self,
        readout: LatentReadout,
        rules: SegmentRules,
        tables: SlotTables,
        tokens: torch.Tensor,
        num_rows: int,
        captured_steps: Sequence[int],
    ):
        device = tables.state.device
        super().__init__(readout, rules, tables, tokens, torch.zeros(num_rows, readout.width, device=device))
        self.predict: Any = readout.latents
        guided = (False, True) if self.may_guide else (False,)
        plans = [SolverPlan(number, is_guided) for number in captured_steps for is_guided in guided]
        self.variants = [replace(variant, solver=plan) for variant in self.variants if variant.speaks for plan in plans]
        self.noise = torch.zeros(num_rows, rules.family.latent_size, device=device)
        self.guidance = torch.ones(num_rows, device=device)
        self._num_steps = torch.zeros(num_rows, dtype=torch.int64, device=device)

    def draw_others(self, hidden: torch.Tensor, variant: Variant) -> None:
        """Generate the latents of all rows, and write them as 32-bit words for `advance_kernel`."""
        number = len(hidden)
        size = self.noise.shape[1]
        block = triton.next_power_of_2(max(size, 2))
        latent_inputs_kernel[number,](
            self.noise, self.guidance, self._num_steps, self.columns.table, self.lengths, self.num_rows, size,
            block, num_warps=max(1, block // 128), **EXACT,
        )  # fmt: skip
        inputs = hidden, self.noise[:number], self._num_steps[:number], variant.solver
        self.others.drawn[:number].copy_(self.words(*inputs))

    def words(self, hidden: torch.Tensor, noise: torch.Tensor, steps: torch.Tensor, solver: SolverPlan) -> torch.Tensor:
        """Return the latents of N rows, whose state is in the tables, as words, int32 [N, D]."""
        return self.predict(hidden, noise, steps, solver).contiguous().view(torch.int32)
