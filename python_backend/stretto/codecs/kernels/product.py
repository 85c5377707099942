"""Kernel of a convolution or linear layer, whose sums have the same order in every window and batch.

state and x, C channels of a step      64 steps of any utterances         output, 64 steps
┌────────────────────┐                ┌─────────────┬─────────────┬───┐    ┌────────────┐   + bias, · gain,
│ s s t t t t t t t  │ ── norm ─────► │ tap 0: 32   │ tap 0: the  │ … │ ─► │ N columns  │ ─ + residual,
└────────────────────┘                │ channels    │ next 32     │   │    └────────────┘   activation
                                      └─────────────┴─────────────┴───┘
                                       · rows of the weight [k, N, C], added from left to right

A sum adds, for each tap and each 32 channels, the sum of their products. The tile has the same shape in every window
and batch, so a sample's sums have the same order wherever its step is.

A transposed convolution is the same product: its columns are the `rate` outputs of a step, and its taps are the inputs
that reach them. The residual and the gain of a layer, and the activation of the layer after it, are applied to the sums
in registers. The next state is written by the same launch.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from stretto.codecs.kernels.signals import BLOCK, activated, input_at, keep_last, late_inputs, memory_or_none, row_of
from stretto.codecs.kernels.sizes import IEEE, Sizes

ROWS = 64  # steps of a tile, which tensor cores of sm_90 multiply at once
CHANNELS: tl.constexpr = tl.constexpr(32)
NUM_WARPS = 8


def columns_of_a_tile(num_columns: int) -> int:
    """Return the number of columns of a tile, which depends on the layer alone."""
    if num_columns % 64 == 0:
        return 64
    return 32 if num_columns > 16 else 16


def multiply_on_device(
    sums: Tensor,
    activations: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    before: Tensor | None,
    after: Tensor | None,
    first: Tensor | None,
    rows: Tensor | None,
    sizes: list[int],
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    gain: Tensor | None,
    residual: Tensor | None,
    activation: str,
    one: Tensor | None,
    other: Tensor | None,
    keeps_sums: bool,
    precision: str,
) -> None:
    """Write the outputs of a convolution, a transposed convolution or a linear layer.

    Args:
        sums: Outputs before the activation, float32 [B, length, O]; written. Empty without `keeps_sums`.
        activations: Activated outputs, [B, length, O], or [B, length, O / 2] for pairs; written. Empty without one.
        x: Inputs, float32 [B, n, C].
        weight: Weight, [k, rate · O, C] with any strides. The first tap reads the earliest input or, of a transposed
            convolution, the last one.
        bias: Bias, [O], or None.
        before: The layer's part of the state before, [B, before · C], or of a table, [R, before · C]; None for zeros.
        after: The layer's part of the next state, in the same layout, written; None if there is none.
        first: Index of the first frame, [B]; with it, `late` inputs at an utterance's start count as zeros.
        rows: Numbers of the utterances' rows in `before`, and in `after`, int64 [2, B]; None if these are their own.
        sizes: Fields of `Sizes`.
        norm_weight: Factor of each channel of a norm of the inputs, [C], or None.
        norm_bias: Summand of each channel of a LayerNorm; None for a norm that does not subtract the mean.
        gain: Factor of each output, [O], or None.
        residual: Summand after the gain, [B, length, O], or None.
        activation: `snake`, `elu`, `gelu`, `gelu_tanh`, `gate` (even columns with SiLU times odd ones), `halves` and
            `pairs` (rotated heads whose coordinates are paired with those of the other half or with the next), or none.
        one: Rates of Snake, [O], or cosines of the rotation, [B, length, head_dim / 2].
        keeps_sums: True if the outputs before the activation are needed.
        precision: `ieee`, `tf32x3`, `tf32` or `bf16`.
    """
    shape = Sizes._make(sizes)
    num_batch, num_inputs, num_channels = x.shape
    num_taps, num_columns, _ = weight.shape
    num_steps = -(-(shape.length + shape.trim) // shape.rate)
    block_columns = columns_of_a_tile(num_columns)
    if shape.num_rotated:
        block_columns = max(block_columns, shape.head_dim)
    grid = triton.cdiv(num_batch * num_steps, ROWS), triton.cdiv(num_columns, block_columns)
    stride_before = 0 if before is None else before.stride(0)
    stride_after = 0 if after is None else after.stride(0)
    tap = -weight.stride(0) if shape.is_transposed else weight.stride(0)
    product_kernel[grid](
        memory_or_none(sums), memory_or_none(activations), x, weight[-1] if shape.is_transposed else weight, bias,
        before, after, first, rows, norm_weight, norm_bias, gain, residual, one, other,
        0 if rows is None else rows.stride(0), stride_before, stride_after,
        num_inputs, num_steps, num_batch, shape.length, shape.again, shape.late, num_channels, num_taps,
        shape.dilation, shape.before, num_columns, num_columns // shape.rate, shape.rate, shape.trim, shape.stride,
        tap, weight.stride(1), weight.stride(2), shape.num_rotated, eps,
        **constants(precision, activation, block_columns, shape.head_dim),
        num_warps=NUM_WARPS, enable_fp_fusion=precision == IEEE,
    )  # fmt: skip


def constants(precision: str, activation: str, block_columns: int, head_dim: int) -> dict[str, Any]:
    """Return the compile-time arguments of the kernel."""
    return {
        "precision": precision,
        "activation": activation,
        "head_dim": head_dim,
        "block_rows": ROWS,
        "block_columns": block_columns,
    }


@triton.jit
def rounded_to_tf32(number: tl.tensor) -> tl.tensor:
    """Round to the 11 significant bits of TF32, ties away from zero."""
    bits = number.to(tl.int32, bitcast=True)
    return ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def added(total: tl.tensor, left: tl.tensor, right: tl.tensor, precision: tl.constexpr) -> tl.tensor:
    """Return `total` plus the product of `left` and `right`, whose operands are rounded as `precision` requires."""
    if precision == "tf32":
        left = rounded_to_tf32(left)
        right = rounded_to_tf32(right)
    if precision == "bf16":
        total = tl.dot(left.to(tl.bfloat16), right.to(tl.bfloat16), total)
    else:
        total = tl.dot(left, right, total, input_precision=precision)
    return total


@triton.jit
def norm_of_rows(
    x: tl.tensor,
    row: tl.tensor,
    is_row: tl.tensor,
    num_channels: tl.tensor,
    eps: tl.tensor,
    has_mean: tl.constexpr,
    block_rows: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return the mean of each row, 0 for RMSNorm, and the inverse of its standard deviation, [block_rows, 1] each."""
    lane = tl.arange(0, CHANNELS)[None, :]
    of_row = x + row * num_channels + lane
    mean = tl.zeros((block_rows, 1), tl.float32)
    total = tl.zeros((block_rows, CHANNELS), tl.float32)
    if has_mean:
        for begin in range(0, num_channels, CHANNELS):
            total += tl.load(of_row + begin, is_row & (begin + lane < num_channels), 0.0)
        mean = tl.sum(total, 1)[:, None] / num_channels
        total = tl.zeros((block_rows, CHANNELS), tl.float32)
    for begin in range(0, num_channels, CHANNELS):
        is_inside = is_row & (begin + lane < num_channels)
        distance = tl.where(is_inside, tl.load(of_row + begin, is_inside, 0.0) - mean, 0.0)
        total += distance * distance
    return mean, tl.rsqrt(tl.sum(total, 1)[:, None] / num_channels + eps)


@triton.jit
def normalized(
    x: tl.tensor,
    mean: tl.tensor,
    scale: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    channel: tl.tensor,
    is_channel: tl.tensor,
) -> tl.tensor:
    """Return the normalised inputs: by LayerNorm, or without a bias by RMSNorm."""
    weights = tl.load(weight + channel, is_channel, 0.0)
    if bias is not None:
        x = (x - mean) * scale * weights + tl.load(bias + channel, is_channel, 0.0)
    else:
        x = x * scale * weights
    return x


@triton.jit
def rotated(
    total: tl.tensor,
    one: tl.tensor,
    other: tl.tensor,
    row: tl.tensor,
    is_row: tl.tensor,
    is_paired: tl.constexpr,
    head_dim: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
) -> tl.tensor:
    """Return sums after the rotary embedding; their columns are the coordinates of heads."""
    half: tl.constexpr = head_dim // 2
    heads: tl.constexpr = block_columns // head_dim
    angle = row * half + tl.arange(0, half)[None, :]
    cosine = tl.load(one + angle, is_row, 0.0)[:, None, :]
    sine = tl.load(other + angle, is_row, 0.0)[:, None, :]
    if is_paired:
        left, right = tl.split(tl.reshape(total, (block_rows, heads, half, 2)))
    else:
        left, right = tl.split(tl.permute(tl.reshape(total, (block_rows, heads, 2, half)), (0, 1, 3, 2)))
    turned = tl.join(left * cosine - right * sine, right * cosine + left * sine)
    if not is_paired:
        turned = tl.permute(turned, (0, 1, 3, 2))
    return tl.reshape(turned, (block_rows, block_columns))


@triton.jit
def store(
    total: tl.tensor,
    sums: tl.tensor,
    activations: tl.tensor,
    bias: tl.tensor,
    gain: tl.tensor,
    residual: tl.tensor,
    one: tl.tensor,
    other: tl.tensor,
    begin: tl.tensor,  # first output of each row, [block_rows, 1]
    before: tl.tensor,  # outputs of the utterances before its own
    is_row: tl.tensor,
    length: tl.tensor,
    columns: tl.tensor,
    num_columns: tl.tensor,
    num_outputs: tl.tensor,
    num_rotated: tl.tensor,
    activation: tl.constexpr,
    head_dim: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
) -> None:
    """Apply bias, gain and residual to sums, and write them and their activations."""
    is_column = (columns < num_columns)[None, :]
    channel = (columns % num_outputs)[None, :]
    step = begin + (columns // num_outputs)[None, :]
    is_inside = is_row & is_column & (step >= 0) & (step < length)
    at = (before + step) * num_outputs + channel
    if bias is not None:
        total += tl.load(bias + channel, is_column, 0.0)
    if gain is not None:
        total *= tl.load(gain + channel, is_column, 0.0)
    if residual is not None:
        total += tl.load(residual + at, is_inside, 0.0)
    if sums is not None:
        tl.store(sums + at, total, is_inside)
    if activation == "gate":
        gate, up = tl.split(tl.reshape(total, (block_rows, block_columns // 2, 2)))
        half = (tl.program_id(1) * (block_columns // 2) + tl.arange(0, block_columns // 2))[None, :]
        of_pair = activations + (before + begin) * (num_outputs // 2) + half
        tl.store(of_pair, gate / (1.0 + tl.exp(-gate)) * up, is_row & (half < num_outputs // 2))
    elif activation == "halves" or activation == "pairs":
        is_paired: tl.constexpr = activation == "pairs"
        turned = rotated(total, one, other, before + begin, is_row, is_paired, head_dim, block_rows, block_columns)
        tl.store(activations + at, tl.where((columns < num_rotated)[None, :], turned, total), is_inside)
    elif activations is not None:
        tl.store(activations + at, activated(total, activation, one, other, channel, is_column), is_inside)


OF_A_WINDOW = ("rows_after", "num_inputs", "num_steps", "num_batch", "length", "again", "late")


@triton.jit(do_not_specialize=[*OF_A_WINDOW, "dilation", "num_before", "trim"])
def product_kernel(
    sums: tl.tensor,  # [B, length, O], written, or None
    activations: tl.tensor,  # the same
    x: tl.tensor,  # [B, n, C]
    weight: tl.tensor,  # [k, N, C], from the tap of the earliest input on
    bias: tl.tensor,  # [O], or None
    before: tl.tensor,  # [R, D], or None
    after: tl.tensor,  # [R, D], written, or None
    first: tl.tensor,  # [B], or None
    state_rows: tl.tensor,  # [2, B] at the distance `rows_after`, or None
    norm_weight: tl.tensor,  # [C], or None
    norm_bias: tl.tensor,  # [C], or None
    gain: tl.tensor,  # [O], or None
    residual: tl.tensor,  # [B, length, O], or None
    one: tl.tensor,
    other: tl.tensor,
    rows_after: tl.tensor, before_batch: tl.tensor, after_batch: tl.tensor,
    num_inputs: tl.tensor, num_steps: tl.tensor,  # n, and rows of the product for an utterance
    num_batch: tl.tensor, length: tl.tensor,  # B, and outputs of an utterance
    again: tl.tensor, late: tl.tensor,
    num_channels: tl.tensor, num_taps: tl.tensor,  # C, k
    dilation: tl.tensor, num_before: tl.tensor,
    num_columns: tl.tensor, num_outputs: tl.tensor, rate: tl.tensor,  # N, O, N / O
    trim: tl.tensor, stride: tl.tensor,  # outputs cut off at the start; inputs between two steps
    weight_tap: tl.tensor, weight_column: tl.tensor, weight_channel: tl.tensor,
    num_rotated: tl.tensor, eps: tl.tensor,
    precision: tl.constexpr, activation: tl.constexpr, head_dim: tl.constexpr,
    block_rows: tl.constexpr, block_columns: tl.constexpr,
) -> None:  # fmt: skip
    rows = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    columns = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
    lane = tl.arange(0, CHANNELS)[None, :]
    is_row = (rows < num_batch * num_steps)[:, None]
    batch = tl.minimum(rows // num_steps, num_batch - 1).to(tl.int64)[:, None]
    step = (rows % num_steps)[:, None]
    zeros = None
    if first is not None:
        zeros = late_inputs(first, batch, late)
    row = row_of(state_rows, batch)
    num_blocks = tl.cdiv(num_channels, CHANNELS)
    has_mean: tl.constexpr = norm_bias is not None
    if norm_weight is not None:  # such a layer has one input for each output, and no state
        mean, scale = norm_of_rows(x, batch * num_inputs + step, is_row, num_channels, eps, has_mean, block_rows)
    of_columns = weight + (columns.to(tl.int64) * weight_column)[:, None]
    total = tl.zeros((block_rows, block_columns), tl.float32)
    for index in range(num_taps * num_blocks):
        tap = index // num_blocks
        channel = index % num_blocks * CHANNELS + lane
        is_channel = channel < num_channels
        at = step * stride + tap * dilation - num_before
        left = input_at(
            x,
            before,
            batch,
            row,
            at,
            channel,
            is_row & is_channel,
            before_batch,
            num_inputs,
            num_channels,
            num_channels,
            num_before,
            zeros,
        )
        if norm_weight is not None:
            left = normalized(left, mean, scale, norm_weight, norm_bias, channel, is_channel)
        of_weight = of_columns + tap * weight_tap + channel * weight_channel
        right = tl.load(of_weight, (columns < num_columns)[:, None] & is_channel, 0.0)
        total = added(total, left, tl.trans(right), precision)
    begin = step * rate - trim
    store(
        total, sums, activations, bias, gain, residual, one, other, begin, batch * length, is_row, length,
        columns, num_columns, num_outputs, num_rotated, activation, head_dim, block_rows, block_columns,
    )  # fmt: skip
    if after is not None:
        keep_last(
            x, before, after, first, state_rows, rows_after, before_batch, after_batch, num_batch, num_inputs,
            num_channels, num_channels, num_before, again, late, BLOCK,
        )  # fmt: skip
