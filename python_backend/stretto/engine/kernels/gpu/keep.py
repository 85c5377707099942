"""Triton kernel that records stream 0 before the end of a multi-token step."""

import triton
import triton.language as tl

from stretto.engine.kernels.gpu.columns import SAMPLES, SLOT


@triton.jit
def keep_kernel(
    tokens: tl.tensor,  # [R, T] int32, written
    results: tl.tensor,  # [N] int32, stream 0 of each row first
    plan: tl.tensor,  # `columns.py`, [C, N] int32
    lengths: tl.tensor,  # [N] int32
    tokens_stride: tl.constexpr,
    plan_stride: tl.constexpr,
) -> None:
    """Record stream 0 of the rows that sample, because later rows of this step read it."""
    row = tl.program_id(0)
    if tl.load(plan + SAMPLES * plan_stride + row) != 0:
        slot = tl.load(plan + SLOT * plan_stride + row).to(tl.int64)
        tl.store(tokens + slot * tokens_stride + tl.load(lengths + row), tl.load(results + row))
