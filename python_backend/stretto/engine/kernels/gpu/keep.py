"""What a step has said on stream 0, written down before the step is over."""

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
    """Write down stream 0 of the rows that sample: more are said in this step, which read it."""
    row = tl.program_id(0)
    if tl.load(plan + SAMPLES * plan_stride + row) != 0:
        slot = tl.load(plan + SLOT * plan_stride + row).to(tl.int64)
        tl.store(tokens + slot * tokens_stride + tl.load(lengths + row), tl.load(results + row))
