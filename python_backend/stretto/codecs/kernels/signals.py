"""Functions that the kernels of codecs share: reading inputs that follow the state, and activations.

state before   x                 inputs of a layer        state after
┌─────────┐   ┌─────────────┐    ┌─────────┬─────────┐    ┌─────────┐
│ s s s s │   │ x x x x … x │ ─► │ s s s s │ x x … x │ ─► │ x … x x │
└─────────┘   └─────────────┘    └─────────┴─────────┘    └─────────┘

A step of the state, like one of x, has all channels. Step 0 is the first new one. Steps of the state are negative.
"""

import triton
import triton.language as tl
from torch import Tensor

BLOCK: tl.constexpr = tl.constexpr(1024)  # numbers of the state that a program copies at once


def memory_or_none(memory: Tensor) -> Tensor | None:
    """Return memory for results, or None if it is empty."""
    return memory if memory.numel() else None


@triton.jit
def input_at(
    x: tl.tensor,  # [B, n, C]
    before: tl.tensor,  # [R, D], from the beginning of the layer's part, or None
    batch: tl.tensor,  # below B, even where nothing is inside
    row: tl.tensor,  # row of the utterance in `before`
    step: tl.tensor,
    channel: tl.tensor,
    is_inside: tl.tensor,
    before_batch: tl.tensor,
    num_inputs: tl.tensor,  # n
    width: tl.tensor,  # distance of two steps of x
    num_channels: tl.tensor,  # C
    num_before: tl.tensor,
    late: tl.tensor,  # number of new inputs that count as zeros, or None
) -> tl.tensor:
    """Return a layer's inputs at the given steps; 0 if there is none, and for the first `late` new ones."""
    is_step = step < num_inputs
    if late is not None:
        is_step = is_step & ((step < 0) | (step >= late))
    of_step = x + batch * num_inputs * width + step * width
    if before is None:
        is_step = is_step & (step >= 0)
    else:
        of_state = before + row * before_batch + (step + num_before) * num_channels
        of_step = tl.where(step < 0, of_state, of_step)
        is_step = is_step & (step >= -num_before)
    return tl.load(of_step + channel, is_inside & is_step, 0.0)


@triton.jit
def late_inputs(first: tl.tensor, batch: tl.tensor, late: tl.tensor) -> tl.tensor:
    """Return how many inputs of utterances count as zeros, from the indices of their first frames, [B]."""
    return tl.where(tl.load(first + batch) == 0, late, 0)


@triton.jit
def row_of(state_rows: tl.tensor, batch: tl.tensor) -> tl.tensor:
    """Return the entries of `state_rows` [B] for the utterances `batch`, or `batch` itself without `state_rows`."""
    return tl.load(state_rows + batch) if state_rows is not None else batch


@triton.jit
def keep_last(
    x: tl.tensor,
    before: tl.tensor,
    after: tl.tensor,  # [R, D], of which the layer's part begins here; written
    first: tl.tensor,
    state_rows: tl.tensor,  # [2, B] at the distance `rows_after`, or None
    rows_after: tl.tensor,
    before_batch: tl.tensor,
    after_batch: tl.tensor,
    num_batch: tl.tensor,
    num_inputs: tl.tensor,
    width: tl.tensor,
    num_channels: tl.tensor,
    num_before: tl.tensor,
    again: tl.tensor,
    late: tl.tensor,
    block: tl.constexpr,
) -> None:
    """Write the last inputs of a layer to the next state; all programs of a launch share the work."""
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    stride = tl.num_programs(0) * tl.num_programs(1) * block
    size = num_before * num_channels
    for begin in range(program * block, num_batch * size, stride):
        element = begin + tl.arange(0, block)
        is_inside = element < num_batch * size
        batch = tl.minimum(element // size, num_batch - 1).to(tl.int64)
        at = element % size
        channel = at % num_channels
        step = at // num_channels + num_inputs - again - num_before
        zeros = None
        if first is not None:
            zeros = late_inputs(first, batch, late)
        number = input_at(
            x, before, batch, row_of(state_rows, batch), step, channel, is_inside, before_batch, num_inputs, width,
            num_channels, num_before, zeros,
        )  # fmt: skip
        row = row_of(state_rows + rows_after, batch) if state_rows is not None else batch
        tl.store(after + row * after_batch + at, number, is_inside)


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


@triton.jit
def activated(
    x: tl.tensor,
    activation: tl.constexpr,
    one: tl.tensor,  # [C], the rates of Snake, or None
    other: tl.tensor,  # [C], its heights, or None
    channel: tl.tensor,
    is_channel: tl.tensor,
) -> tl.tensor:
    """Apply an activation function to a layer's sums."""
    if activation == "snake":
        result = snake(x, tl.load(one + channel, is_channel, 0.0), tl.load(other + channel, is_channel, 0.0))
    elif activation == "elu":
        result = tl.where(x > 0, x, tl.exp(tl.minimum(x, 0.0)) - 1.0)
    elif activation == "gelu":
        result = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        tl.static_assert(activation == "gelu_tanh", "activation must be snake, elu, gelu or gelu_tanh")
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        result = x / (1.0 + tl.exp(-2.0 * inner))
    return result
