"""Triton kernels for rows in stretches of audio with marks around them."""

import triton
import triton.language as tl

from stretto.engine.kernels.gpu.draw import real_of
from stretto.engine.kernels.gpu.step_draw import (
    AUDIO_END,
    AUDIO_MAX,
    AUDIO_START,
    DRAWS,
    GUIDANCE,
    OTHER,
    ROLE,
    SLOT,
)


@triton.jit
def _previous(
    tokens: tl.tensor, mine: tl.tensor, position: tl.tensor, tokens_stride: tl.constexpr, num_rows: tl.constexpr
) -> tl.tensor:
    """Return stream 0 of the row before the one at `position`."""
    slot = tl.load(mine + SLOT * num_rows).to(tl.int64)
    return tl.load(tokens + slot * tokens_stride + tl.maximum(position - 1, 0))


@triton.jit
def mask_after_end_kernel(
    logits: tl.tensor,  # of stream 0, [N, C] float32 with row stride `logits_stride`, written
    denied: tl.tensor,  # [C] bool, True for columns that are forbidden after the mark `end`
    plan: tl.tensor,  # `step_draw.py`, [C, N] int32
    lengths: tl.tensor,  # [N] int32
    tokens: tl.tensor,  # stream 0, [R, T, 1] int32
    logits_stride: tl.constexpr,
    tokens_stride: tl.constexpr,
    num_rows: tl.constexpr,
    num_columns: tl.constexpr,
    end: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    columns = tl.arange(0, block)
    if _previous(tokens, plan + row, tl.load(lengths + row), tokens_stride, num_rows) == end:
        is_denied = tl.load(denied + columns, mask=columns < num_columns, other=0) != 0
        tl.store(logits + row.to(tl.int64) * logits_stride + columns, float("-inf"), mask=is_denied)


@triton.jit
def stretch_inputs_kernel(
    guidance: tl.tensor,  # [N] float32, written: guidance scale, 1 for rows that are not guided
    numbers: tl.tensor,  # [3, N] int64, written: row of the unconditional request, slot, position
    flags: tl.tensor,  # [2, N] bool, written: 1 in the first frame of a stretch; 1 if the row is a frame
    plan: tl.tensor,  # `step_draw.py`, [C, N] int32
    lengths: tl.tensor,  # [N] int32
    state: tl.tensor,  # [R, 5 + C] int64
    tokens: tl.tensor,  # stream 0, [R, T, 1] int32
    first: tl.tensor,  # sampled ids of stream 0, [N] int32
    rules: tl.constexpr,  # `StepRules`
    tokens_stride: tl.constexpr,
    begin: tl.constexpr,  # id of the mark that begins a stretch
) -> None:
    row = tl.program_id(0)
    mine = plan + row
    position = tl.load(lengths + row).to(tl.int64)
    slot = tl.load(mine + SLOT * rules.num_rows).to(tl.int64)
    other = tl.load(mine + OTHER * rules.num_rows)
    scale = real_of(mine + GUIDANCE * rules.num_rows)
    begins = _previous(tokens, mine, position, tokens_stride, rules.num_rows) == begin
    tl.store(guidance + row, tl.where(begins | (other != row), scale, 1.0))
    tl.store(numbers + row, other.to(tl.int64))
    tl.store(numbers + rules.num_rows + row, slot)
    tl.store(numbers + 2 * rules.num_rows + row, position)
    at = state + slot * rules.state_stride
    start = tl.load(at + AUDIO_START)
    end = tl.load(at + AUDIO_END)
    in_audio = (start >= 0) & (position >= start) & (end < 0)
    is_over = (position - start >= tl.load(mine + AUDIO_MAX * rules.num_rows)) | (position >= rules.family.audio_limit)
    is_frame = (tl.load(mine + ROLE * rules.num_rows) == DRAWS) & in_audio & (is_over == 0)
    tl.store(flags + row, begins)
    tl.store(flags + rules.num_rows + row, is_frame & (tl.load(first + row) == rules.family.first_start))
