"""Sampling of Turbo's codes: the repetition penalty applies to the logits that top-k and top-p have kept.

In other families, top-k and top-p apply to the penalized logits. At temperature 0 neither is used, and the id with the
largest penalized logit is taken.
"""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import triton
import triton.language as tl

from stretto.engine.kernels.draw import draw
from stretto.engine.kernels.gpu.step_draw import SAMPLING_FUNCTIONS, kept, with_penalty
from stretto.engine.sampling.parameters import DrawParams
from stretto.engine.sampling.truncation import kept_candidates
from stretto.engine.worker.batch_plan import BatchPlan, PlanArrays
from stretto.engine.worker.sampler import RowDraw
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import Array
from stretto.engine.worker.step_program import StepProgram
from stretto.family.base import DrawRules


def truncate(logits: torch.Tensor, params: DrawParams) -> torch.Tensor:
    """Return a copy of logits, float32 [B, C] on the CPU, with -inf for ids that top-k or top-p exclude.

    Rows at temperature 0 are unchanged.
    """
    values = logits.numpy().copy()
    for rows in params.rows(1, logits.shape[1]):
        if rows.keeps_all:
            continue
        index = np.arange(len(values)) if rows.index is None else rows.index
        floor = kept_candidates(values[index], rows)[2]
        is_dropped = values[index] < floor
        if rows.is_greedy is not None:
            is_dropped &= ~rows.is_greedy
        values[index] = np.where(is_dropped, np.float32(-np.inf), values[index])
    return torch.from_numpy(values)


def truncate_on_device(logits: torch.Tensor, params: DrawParams) -> torch.Tensor:
    """Compute `truncate` on a GPU, float32 [B, C]."""
    num_columns = logits.shape[1]
    top_p = params.top_p[:, None]
    is_random = (params.temperature > 0)[:, None]
    ranked = logits.sort(descending=True).values
    last = torch.where(params.top_k > 0, params.top_k, num_columns).clamp(max=num_columns)[:, None] - 1
    floor = ranked.gather(1, last)
    weights = ((ranked - ranked[:, :1]) / torch.where(is_random, params.temperature[:, None], 1.0)).exp()
    mass = weights.masked_fill(ranked < floor, 0.0).double().cumsum(1)
    num_kept = 1 + (mass[:, :-1] < top_p * mass[:, -1:]).sum(1, keepdim=True)
    nucleus = ranked.gather(1, num_kept - 1)
    floor = torch.where(top_p < 1, torch.maximum(floor, nucleus), floor)
    return logits.masked_fill(is_random & (logits < floor), -torch.inf)


class LateDraw(RowDraw):
    """Sampler that applies the repetition penalty after top-k and top-p."""

    def penalized(self, logits: torch.Tensor, rows: Rows, index: Array | None) -> torch.Tensor:
        """Return the logits unchanged, because `chosen` applies the penalty."""
        return logits

    def chosen(
        self, logits: torch.Tensor, keys: torch.Tensor, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> torch.Tensor:
        is_random = plan.audio.is_random
        params = step.audio
        if not is_random:
            truncated = logits.clone()
        else:
            truncated = (truncate if logits.device.type == "cpu" else truncate_on_device)(logits, params)
        truncated = super().penalized(truncated, rows, step.speaking)
        params = replace(params, top_k=torch.zeros_like(params.top_k), top_p=torch.ones_like(params.top_p))
        draw_plan = replace(plan.audio, has_top_p=False)
        return draw(truncated[:, None], self.heads.first_ids[None], keys, params, draw_plan)


@triton.jit
def _unpenalized(values: tl.tensor, is_seen: tl.tensor, penalty: tl.tensor) -> tl.tensor:
    """Return the logits unchanged, because `_kept` applies the penalty."""
    return values


@triton.jit
def _kept(
    values: tl.tensor, num_columns: tl.tensor, temperature: tl.tensor, top_k: tl.tensor, top_p: tl.tensor,
    is_seen: tl.tensor, penalty: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Return penalized logits, with -inf where top-k or top-p exclude an id, and a floor of -inf."""
    _, floor = kept(values, num_columns, temperature, top_k, top_p, is_seen, penalty)
    floor = tl.where(temperature > 0, floor, float("-inf"))
    values = tl.where(values >= floor, values, float("-inf"))
    return with_penalty(values, is_seen, penalty), tl.full((), float("-inf"), tl.float32)


class LateProgram(StepProgram):
    """GPU kernels that apply the repetition penalty after top-k and top-p."""

    sampling_functions: ClassVar = SAMPLING_FUNCTIONS._replace(penalized=_unpenalized, kept=_kept)


def row_draw(rules: DrawRules, *arguments: Any) -> LateDraw:
    """Return the sampler of rows (`DrawRules.row_draw`)."""
    return LateDraw(*arguments)


def step_program(rules: DrawRules, *arguments: Any) -> LateProgram:
    """Return the kernel launches (`DrawRules.step_program`)."""
    return LateProgram(*arguments)
