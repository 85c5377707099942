"""Triton functions that sample codes from the probabilities at temperature 1, as `draw.py` does."""

from typing import Any, ClassVar, NamedTuple

import triton
import triton.language as tl

from stretto.engine.kernels.gpu.draw import HIGHEST, LOWEST, float_of, middle_of, ordered_of
from stretto.engine.kernels.gpu.step_draw import SAMPLING_FUNCTIONS, repeated, top_k_floor
from stretto.engine.reply_rules import SegmentRules
from stretto.engine.worker.predictors import Readout
from stretto.engine.worker.step_program import StepProgram
from stretto_fish_s2.family import LateTemperature


class Redraw(NamedTuple):
    """Constants of `LateTemperature` for kernels."""

    top_p: float


@triton.jit
def _floor(values: tl.tensor, num_columns: tl.tensor, top_k: tl.tensor, top_p: tl.tensor) -> tl.tensor:
    """Return the smallest of `values` that top-k and top-p keep at temperature 1, as in `draw.py`."""
    floor = top_k_floor(values, num_columns, top_k)
    if top_p < 1:
        ordered = ordered_of(values)
        largest = tl.max(values, 0)
        weights = tl.exp(values - largest)
        wanted = top_p * tl.sum(weights, 0)
        low = ordered_of(floor) - 1
        high = ordered_of(largest)
        while low + 1 < high:  # move both ends to the next value; the mass is constant in between
            middle = middle_of(low, high)
            is_above = ordered > middle
            below = tl.max(tl.where(is_above, LOWEST, ordered), 0)
            mass = tl.sum(tl.where(is_above, weights, 0.0), 0) + tl.exp(float_of(below) - largest)
            if mass <= wanted:
                high = tl.maximum(below, low + 1)
            else:
                low = tl.min(tl.where(is_above, ordered, HIGHEST), 0) - 1
        floor = float_of(high)
    return floor


@triton.jit
def _kept(
    values: tl.tensor, num_columns: tl.tensor, temperature: tl.tensor, top_k: tl.tensor, top_p: tl.tensor,
    is_seen: tl.tensor, penalty: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Return the logits, and the smallest one that top-k and top-p keep."""
    floor = tl.full((), float("-inf"), tl.float32)
    if temperature > 0:
        floor = _floor(values, num_columns, top_k, top_p)
    return values, floor


@triton.jit
def _redrawn_from(
    values: tl.tensor, columns: tl.tensor, repeated: tl.tensor, num_columns: tl.tensor, top_k: tl.tensor,
    constants: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return the logits that `redraw_top_p` and the reply's top-k keep."""
    return tl.where(values >= _floor(values, num_columns, top_k, constants.top_p), values, float("-inf"))


@triton.jit
def _repeated(
    token: tl.tensor, is_code: tl.tensor, history: tl.tensor, mine: tl.tensor, position: tl.tensor,
    audio_start: tl.tensor, row_stride: tl.constexpr, plan_stride: tl.constexpr, constants: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return True if a code occurs too often in the last rows; the first frame does not count."""
    return repeated(token, is_code, history, mine, position, audio_start + 1, row_stride, plan_stride, constants)


@triton.jit
def _may_repeat(
    token: tl.tensor, is_code: tl.tensor, history: tl.tensor, mine: tl.tensor, position: tl.tensor,
    audio_start: tl.tensor, row_stride: tl.constexpr, plan_stride: tl.constexpr, constants: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return False, because the other codebooks may repeat."""
    return is_code != is_code


class LateTemperatureProgram(StepProgram):
    """GPU kernels that sample with top-k and top-p at temperature 1."""

    sampling_functions: ClassVar = SAMPLING_FUNCTIONS._replace(
        kept=_kept, redrawn_from=_redrawn_from, repeated=_repeated
    )
    other_functions: ClassVar = SAMPLING_FUNCTIONS._replace(kept=_kept, repeated=_may_repeat)

    def __init__(self, late: LateTemperature, readout: Readout, rules: SegmentRules, *arguments: Any):
        super().__init__(readout, rules, *arguments)
        self.rule_constants = Redraw(late.redraw_top_p)
