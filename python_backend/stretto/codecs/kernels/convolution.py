"""Kernel of a convolution as a product on tensor cores, whose sums have one order for any chunk and batch.

x, C channels of each step     64 steps of any utterances         output, 64 steps
┌────────────────────┐        ┌─────────────┬─────────────┬───┐    ┌────────────┐
│ t t t t t t t t t  │ ─────► │ tap 0: 32   │ tap 0: the  │ … │ ─► │ N columns  │ + bias
└────────────────────┘        │ channels    │ next 32     │   │    └────────────┘
                              └─────────────┴─────────────┴───┘
                               · rows of the weight [N, k, C], added from left to right

A sum adds, for each tap and each 32 channels, the sum of their products. The tile has the same shape in every window
and batch, so a sample's sums have the same order wherever its step is.

A transposed convolution is the same product: its columns are the `rate` outputs of a step, and its taps are the inputs
that reach them.
"""

import triton
import triton.language as tl
from torch import Tensor

ROWS = 64  # steps of a tile, which tensor cores of sm_90 multiply at once
CHANNELS: tl.constexpr = tl.constexpr(32)
NUM_WARPS = 8


def columns_of_a_tile(num_columns: int) -> int:
    """Return the number of columns of a tile, which depends on the layer alone."""
    if num_columns % 64 == 0:
        return 64
    return 32 if num_columns > 16 else 16


def convolve_on_device(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    padding: int,
    rate: int,
    trim: int,
    length: int,
    precision: str,
) -> None:
    """Write the outputs of a convolution or, with a rate above one, of a transposed one.

    Args:
        out: Outputs, float32 [B, O, length], contiguous; written.
        x: Inputs, float32 [B, C, n].
        weight: Weight, [rate · O, k, C], contiguous, rounded to the precision; the first tap reads the earliest input.
        bias: Bias, [O], or None.
        dilation: Distance of the inputs that two taps read.
        padding: Number of zeros before the first input.
        rate: Number of outputs for a step of the product.
        trim: Number of outputs cut off at the start.
        length: Number of outputs of a channel.
        precision: `tf32x3`, `tf32` or `bf16`.
    """
    num_batch, num_outputs, _ = out.shape
    num_columns, num_taps, num_channels = weight.shape
    num_steps = -(-(length + trim) // rate)
    block_columns = columns_of_a_tile(num_columns)
    grid = triton.cdiv(num_batch * num_steps, ROWS), triton.cdiv(num_columns, block_columns)
    convolve_kernel[grid](
        out,
        x,
        weight,
        bias,
        x.stride(0),
        x.stride(1),
        x.stride(2),
        x.shape[2],
        num_channels,
        num_taps,
        dilation,
        padding,
        num_steps,
        num_batch,
        num_columns,
        num_outputs,
        rate,
        trim,
        length,
        precision,
        ROWS,
        block_columns,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )


@triton.jit
def rounded_to_tf32(number: tl.tensor) -> tl.tensor:
    """Round to the 11 significant bits of TF32, ties away from zero."""
    bits = number.to(tl.int32, bitcast=True)
    return ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


OF_A_WINDOW = ("x_batch", "x_channel", "x_step", "num_inputs", "num_steps", "num_batch", "length")


@triton.jit(do_not_specialize=[*OF_A_WINDOW, "dilation", "padding", "trim"])
def convolve_kernel(
    out: tl.tensor,  # [B, O, length], written
    x: tl.tensor,  # [B, C, n], with these strides
    weight: tl.tensor,  # [N, k, C]
    bias: tl.tensor,  # [O], or None
    x_batch: tl.tensor,
    x_channel: tl.tensor,
    x_step: tl.tensor,
    num_inputs: tl.tensor,  # n
    num_channels: tl.tensor,  # C
    num_taps: tl.tensor,  # k
    dilation: tl.tensor,
    padding: tl.tensor,
    num_steps: tl.tensor,  # rows of the product for an utterance
    num_batch: tl.tensor,  # B
    num_columns: tl.tensor,  # N
    num_outputs: tl.tensor,  # O
    rate: tl.tensor,  # N / O
    trim: tl.tensor,  # outputs cut off at the start
    length: tl.tensor,
    precision: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
) -> None:
    rows = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    columns = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
    batch = (rows // num_steps).to(tl.int64)
    first = rows % num_steps - padding
    num_blocks = tl.cdiv(num_channels, CHANNELS)
    is_row = rows < num_batch * num_steps
    is_column = (columns < num_columns)[None, :]
    of_rows = x + (batch * x_batch)[:, None]
    of_columns = weight + (columns.to(tl.int64) * num_taps * num_channels)[None, :]
    total = tl.zeros((block_rows, block_columns), tl.float32)
    for index in range(num_taps * num_blocks):
        tap = index // num_blocks
        channel = index % num_blocks * CHANNELS + tl.arange(0, CHANNELS)
        is_channel = channel < num_channels
        step = first + tap * dilation
        is_input = is_row & (step >= 0) & (step < num_inputs)
        of_inputs = of_rows + step[:, None] * x_step + channel[None, :] * x_channel
        left = tl.load(of_inputs, is_input[:, None] & is_channel[None, :], 0.0)
        right = tl.load(of_columns + (tap * num_channels + channel)[:, None], is_channel[:, None] & is_column, 0.0)
        if precision == "tf32":
            left = rounded_to_tf32(left)
        if precision == "bf16":
            total = tl.dot(left.to(tl.bfloat16), right, total)
        else:
            total = tl.dot(left, right, total, input_precision=precision)
    channel = (columns % num_outputs)[None, :]
    if bias is not None:
        total += tl.load(bias + channel, is_column, 0.0)
    step = (first + padding)[:, None] * rate + (columns // num_outputs)[None, :] - trim
    is_inside = is_row[:, None] & is_column & (step >= 0) & (step < length)
    tl.store(out + (batch[:, None] * num_outputs + channel) * length + step, total, is_inside)
