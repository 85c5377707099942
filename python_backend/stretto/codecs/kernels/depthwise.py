"""Kernel of a depthwise convolution, or of an activation alone.

Filters may be those of a transposed convolution, whose steps have `rate` outputs. Sums add the taps from the earliest
input on; the bias is the first summand.
"""

import triton
import triton.language as tl
from torch import Tensor

from stretto.codecs.kernels.signals import BLOCK, activated, input_at, keep_last, late_inputs, memory_or_none, row_of
from stretto.codecs.kernels.sizes import Sizes

# size of the tile of outputs that a program computes
ROWS = 16
COLUMNS = 64


def filter_on_device(
    sums: Tensor,
    activations: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    before: Tensor | None,
    after: Tensor | None,
    first: Tensor | None,
    rows: Tensor | None,
    sizes: list[int],
    activation: str,
    one: Tensor | None,
    other: Tensor | None,
    keeps_sums: bool,
) -> None:
    """Write the outputs of a depthwise convolution, or of a transposed one.

    Args:
        sums: Outputs before the activation, float32 [B, length, C]; written. Empty without `keeps_sums`.
        activations: Activated outputs, [B, length, C]; written. Empty without an activation.
        x: Inputs, float32 [B, n, C].
        weight: Filters, [C, k]. The first tap reads the earliest input or, of a transposed convolution, each `rate`
            taps read an input, the last one first. None if the outputs are the inputs.
        bias: Bias, [C], or None.
    """
    shape = Sizes._make(sizes)
    num_batch, num_inputs, num_channels = x.shape
    num_taps = 1 if weight is None else weight.shape[1] // shape.rate
    grid = triton.cdiv(num_batch * shape.length, ROWS), triton.cdiv(num_channels, COLUMNS)
    depthwise_kernel[grid](
        memory_or_none(sums),
        memory_or_none(activations),
        x,
        weight,
        bias,
        before,
        after,
        first,
        rows,
        one,
        other,
        0 if rows is None else rows.stride(0),
        0 if before is None else before.stride(0),
        0 if after is None else after.stride(0),
        num_inputs,
        num_batch,
        shape.length,
        shape.again,
        shape.late,
        num_channels,
        num_taps,
        shape.dilation,
        shape.before,
        shape.rate,
        0 if weight is None else weight.stride(0),
        0 if weight is None else weight.stride(1),
        bool(shape.is_transposed),
        activation,
        ROWS,
        COLUMNS,
        num_warps=4,
        enable_fp_fusion=False,
    )


@triton.jit(
    do_not_specialize=["rows_after", "num_inputs", "num_batch", "length", "again", "late", "dilation", "num_before"]
)
def depthwise_kernel(
    sums: tl.tensor,  # [B, length, C], written, or None
    activations: tl.tensor,  # the same
    x: tl.tensor,  # [B, n, C]
    weight: tl.tensor,  # [C, k · rate], or None
    bias: tl.tensor,  # [C], or None
    before: tl.tensor,  # [R, D], or None
    after: tl.tensor,  # [R, D], written, or None
    first: tl.tensor,  # [B], or None
    state_rows: tl.tensor,  # [2, B] at the distance `rows_after`, or None
    one: tl.tensor,
    other: tl.tensor,
    rows_after: tl.tensor,
    before_batch: tl.tensor,
    after_batch: tl.tensor,
    num_inputs: tl.tensor,  # n
    num_batch: tl.tensor,  # B
    length: tl.tensor,
    again: tl.tensor,
    late: tl.tensor,
    num_channels: tl.tensor,  # C
    num_taps: tl.tensor,  # k
    dilation: tl.tensor,
    num_before: tl.tensor,
    rate: tl.tensor,
    weight_channel: tl.tensor,
    weight_tap: tl.tensor,
    is_transposed: tl.constexpr,
    activation: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
) -> None:
    rows = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    channel = (tl.program_id(1) * block_columns + tl.arange(0, block_columns))[None, :]
    is_channel = channel < num_channels
    is_inside = (rows < num_batch * length)[:, None] & is_channel
    batch = tl.minimum(rows // length, num_batch - 1).to(tl.int64)[:, None]
    step = (rows % length)[:, None]
    total = tl.zeros((block_rows, block_columns), tl.float32)
    if bias is not None:
        total += tl.load(bias + channel, is_channel, 0.0)
    zeros = None
    if first is not None:
        zeros = late_inputs(first, batch, late)
    row = row_of(state_rows, batch)
    for tap in range(num_taps):
        at = step // rate + tap * dilation - num_before
        number = input_at(
            x, before, batch, row, at, channel, is_inside, before_batch, num_inputs, num_channels,
            num_channels, num_before, zeros,
        )  # fmt: skip
        if weight is None:
            total += number
        else:
            position = (num_taps - 1 - tap) * rate + step % rate if is_transposed else tap
            of_weight = weight + channel * weight_channel + position * weight_tap
            total += number * tl.load(of_weight, is_inside, 0.0)
    of_output = (batch * length + step) * num_channels + channel
    if sums is not None:
        tl.store(sums + of_output, total, is_inside)
    if activations is not None:
        tl.store(activations + of_output, activated(total, activation, one, other, channel, is_channel), is_inside)
    if after is not None:
        keep_last(
            x, before, after, first, state_rows, rows_after, before_batch, after_batch, num_batch, num_inputs,
            num_channels, num_channels, num_before, again, late, BLOCK,
        )  # fmt: skip
