"""Kernel that joins a layer's last inputs and its new ones, which Snake activates, and keeps the last of these inputs.

state before   x                 joined                   state after
┌─────────┐   ┌─────────────┐    ┌─────────┬─────────┐    ┌─────────┐
│ s s s s │   │ x x x x … x │ ─► │ s s s s │ y y … y │ ─► │ y y … y │    y = x + height · sin²(rate · x)
└─────────┘   └─────────────┘    └─────────┴─────────┘    └─────────┘
"""

import triton
import triton.language as tl
from torch import Tensor

# numbers of a program
ROWS = 16
COLUMNS = 128


def join_on_device(
    out: Tensor,
    x: Tensor,
    before: Tensor | None,
    after: Tensor | None,
    at: int,
    steps: int,
    again: int,
    time: int,
    rate: Tensor | None,
    height: Tensor | None,
) -> None:
    """Write the last inputs of a layer followed by the new ones, activated, and the last of these to the next state.

    A row of a signal is the steps of a channel, or all numbers of a batch row whose steps are its second dimension.

    Args:
        out: Joined inputs, contiguous; written.
        x: New inputs, float32 [B, C, n] or [B, n, …].
        before: State before, [B, D]; None if no inputs are kept.
        after: State after, [B, D]; written.
        at: Index of the layer's first element in both states.
        steps: Number of inputs that are kept.
        again: Number of new inputs at the end that the next window contains again; they are not kept.
        time: Dimension of the steps: 2, or 1.
        rate: Factor of each channel, [C], with time 2; None to join x itself.
        height: Second factor of each channel, [C].
    """
    num_channels = x.shape[1] if time == 2 else 1
    if time == 1:
        x = x.flatten(2)
        assert x.stride(2) == 1, x.stride()
    inner = 1 if time == 2 else x.shape[2]
    num_new = x.shape[time]
    num_rows = x.shape[0] * num_channels
    grid = triton.cdiv(num_rows, ROWS), triton.cdiv((steps + num_new) * inner, COLUMNS)
    join_kernel[grid](
        out,
        after,
        x,
        before,
        rate,
        height,
        x.stride(0),
        x.stride(1) if time == 2 else 0,
        x.stride(time),
        0 if before is None else before.stride(0),
        0 if after is None else after.stride(0),
        at,
        num_rows,
        num_channels,
        num_new,
        steps,
        again,
        inner,
        ROWS,
        COLUMNS,
        num_warps=8,
        enable_fp_fusion=False,
    )


@triton.jit
def snake(x: tl.tensor, rate: tl.tensor, height: tl.tensor) -> tl.tensor:
    """Return x + height · sin²(rate · x), rounded after each operation.

    sin² has the period π. Multiples of π are subtracted in three parts, of which the first two are exact products, and
    the sine of the rest, at most π/2, is a polynomial. The error of sin² is below 3e-7 up to 10,000. Above 100,000 it
    grows, but stays below that which the spacing of float32 numbers of this size causes.
    """
    angle = rate * x
    turns = tl.floor(angle * 0.318309886 + 0.5)
    angle = ((angle - turns * 3.140625) - turns * 9.67502593994140625e-4) - turns * 1.50995799e-7
    square = angle * angle
    series = ((2.600054131e-06 * square - 1.98066147e-4) * square + 8.333017118e-3) * square - 1.666665673e-1
    sine = angle + angle * square * series
    return x + height * (sine * sine)


@triton.jit(do_not_specialize=["num_rows", "x_batch", "x_channel", "x_step", "at", "num_new", "steps", "again"])
def join_kernel(
    out: tl.tensor,  # [B, C, steps + n, inner], written
    after: tl.tensor,  # [B, D], written, or None
    x: tl.tensor,  # [B, C, n, inner] with these strides, and 1
    before: tl.tensor,  # [B, D], or None
    rate: tl.tensor,  # [C], or None
    height: tl.tensor,  # [C], or None
    x_batch: tl.tensor,
    x_channel: tl.tensor,
    x_step: tl.tensor,
    before_batch: tl.tensor,
    after_batch: tl.tensor,
    at: tl.tensor,
    num_rows: tl.tensor,  # B · C
    num_channels: tl.tensor,
    num_new: tl.tensor,
    steps: tl.tensor,
    again: tl.tensor,
    inner: tl.tensor,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
) -> None:
    row = (tl.program_id(0) * block_rows + tl.arange(0, block_rows)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * block_columns + tl.arange(0, block_columns))[None, :]
    batch = row // num_channels
    channel = row % num_channels
    step = column // inner
    size = (steps + num_new) * inner
    is_inside = (row < num_rows) & (column < size)
    place = batch * x_batch + channel * x_channel + (step - steps) * x_step + column % inner
    number = tl.load(x + place, is_inside & (step >= steps), 0.0)
    if rate is not None:
        is_row = row < num_rows
        number = snake(number, tl.load(rate + channel, is_row, 0.0), tl.load(height + channel, is_row, 0.0))
    if before is not None:
        kept = at + channel * steps * inner
        number += tl.load(before + batch * before_batch + kept + column, is_inside & (step < steps), 0.0)
        later = column - (num_new - again) * inner  # the last inputs begin at the step `num_new - again`
        is_kept = is_inside & (later >= 0) & (later < steps * inner)
        tl.store(after + batch * after_batch + kept + later, number, is_kept)
    tl.store(out + row * size + column, number, is_inside)
