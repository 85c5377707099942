"""Triton kernel of `sampling/draw.py` with its noise, one program per row and stream."""

import torch
import triton
import triton.language as tl

from stretto.sampling.draw import DrawParams, DrawPlan
from stretto.sampling.draw import draw as draw_on_host


@triton.jit
def mixed(x: tl.tensor) -> tl.tensor:
    """Return lowbias32 of uint32 `x`."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    return x


@triton.jit
def stream_key_of(seed_key: tl.tensor, position: tl.tensor, stream: tl.tensor) -> tl.tensor:
    """Return `sampling.noise.stream_keys` of one row and stream: uint32."""
    row = mixed(seed_key.to(tl.uint32, bitcast=True) + position.to(tl.uint32) * 0x9E3779B1)
    return mixed(row + stream.to(tl.uint32) * 0x85EBCA6B)


@triton.jit
def redraw_key_of(key: tl.tensor) -> tl.tensor:
    """Return `sampling.noise.redraw_keys`."""
    return mixed(key + 0x27D4EB2F)


@triton.jit
def uniform_of(key: tl.tensor, token_ids: tl.tensor) -> tl.tensor:
    """Return `sampling.noise.uniform`."""
    bits = mixed(key + token_ids.to(tl.uint32) * 0xC2B2AE35)
    return ((bits >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def gumbel_of(key: tl.tensor, token_ids: tl.tensor) -> tl.tensor:
    """Return `sampling.noise.gumbel` with the device's logarithms."""
    return -tl.log(-tl.log(uniform_of(key, token_ids)))


MAX_BLOCK = 4096


def draw(
    logits: torch.Tensor, token_ids: torch.Tensor, keys: torch.Tensor, params: DrawParams, plan: DrawPlan
) -> torch.Tensor:
    """Return the ids that `sampling.draw.draw` samples, computed on the device of `logits`."""
    if logits.device.type == "cpu":
        return draw_on_host(logits, token_ids, keys, params, plan)
    return draw_on_device(logits, token_ids, keys, params)


def draw_on_device(
    logits: torch.Tensor, token_ids: torch.Tensor, keys: torch.Tensor, params: DrawParams
) -> torch.Tensor:
    """Return the ids that `sampling.draw.draw` samples, computed by the kernel.

    Ids may differ if the last bit of a logarithm or of a sum decides between two candidates.
    """
    num_rows, num_streams, num_columns = logits.shape
    drawn = torch.empty(num_rows, num_streams, dtype=token_ids.dtype, device=logits.device)
    block = min(max(triton.next_power_of_2(num_columns), 128), MAX_BLOCK)
    _draw_kernel[num_rows, num_streams](
        drawn,
        logits.contiguous(),
        token_ids.contiguous(),
        keys.contiguous(),
        params.temperature.contiguous(),
        params.top_k.contiguous(),
        params.top_p.contiguous(),
        num_columns,
        block,
        num_warps=4 if block <= 1024 else 8,
    )
    return drawn


@triton.jit
def ordered_of(values: tl.tensor) -> tl.tensor:
    """Return int32 values in the order of the floats; it is its own inverse, except for the type."""
    bits = values.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def float_of(ordered: tl.tensor) -> tl.tensor:
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def middle_of(low: tl.tensor, high: tl.tensor) -> tl.tensor:
    """Return (low + high) / 2, rounded down, without overflow of 32 bits."""
    return (low & high) + ((low ^ high) >> 1)


@triton.jit
def _largest(line: tl.tensor, num_columns: tl.tensor, block: tl.constexpr) -> tl.tensor:
    largest = tl.full((), float("-inf"), tl.float32)
    for start in range(0, num_columns, block):
        columns = start + tl.arange(0, block)
        values = tl.load(line + columns, mask=columns < num_columns, other=float("-inf"))
        largest = tl.maximum(largest, tl.max(values, 0))
    return largest


@triton.jit
def _kth_largest(
    line: tl.tensor, num_columns: tl.tensor, top_k: tl.tensor, largest: tl.tensor, block: tl.constexpr
) -> tl.tensor:
    """Return the largest float that at least `top_k` logits reach: one of them, or -inf."""
    low = ordered_of(tl.full((), float("-inf"), tl.float32))
    high = ordered_of(largest) + 1
    while low + 1 < high:
        middle = middle_of(low, high)
        count = tl.full((), 0, tl.int32)
        for start in range(0, num_columns, block):
            columns = start + tl.arange(0, block)
            values = tl.load(line + columns, mask=columns < num_columns, other=float("-inf"))
            count += tl.sum((ordered_of(values) >= middle).to(tl.int32), 0)
        if count >= top_k:
            low = middle
        else:
            high = middle
    return float_of(low)


@triton.jit
def _mass_above(
    line: tl.tensor,
    num_columns: tl.tensor,
    ordered: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    block: tl.constexpr,
) -> tl.tensor:
    """Return the sum of exp((logit - largest) / temperature) over the logits above `ordered`."""
    mass = tl.full((), 0.0, tl.float32)
    for start in range(0, num_columns, block):
        columns = start + tl.arange(0, block)
        values = tl.load(line + columns, mask=columns < num_columns, other=float("-inf"))
        weights = tl.exp((values - largest) / temperature)
        mass += tl.sum(tl.where(ordered_of(values) > ordered, weights, 0.0), 0)
    return mass


@triton.jit
def _nucleus(
    line: tl.tensor,
    num_columns: tl.tensor,
    floor: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    top_p: tl.tensor,
    block: tl.constexpr,
) -> tl.tensor:
    """Return the smallest float such that logits above it have less than `top_p` of the mass from `floor` on."""
    low = ordered_of(floor) - 1
    high = ordered_of(largest)
    wanted = top_p * _mass_above(line, num_columns, low, largest, temperature, block)
    while low + 1 < high:
        middle = middle_of(low, high)
        if _mass_above(line, num_columns, middle, largest, temperature, block) < wanted:
            high = middle
        else:
            low = middle
    return float_of(high)


# Rows of a table are aligned to 4 bytes only. One binary must serve batches of all sizes, because a batch of a new size
# would otherwise have to wait for the compiler.
@triton.jit(do_not_specialize_on_alignment=["keys", "temperatures", "top_ks", "top_ps"])
def _draw_kernel(
    drawn: tl.tensor,  # [B, S], written
    logits: tl.tensor,  # [B, S, C] float32
    token_ids: tl.tensor,  # [S, C]
    keys: tl.tensor,  # [B, S] int32
    temperatures: tl.tensor,  # [B] float32
    top_ks: tl.tensor,  # [B] int
    top_ps: tl.tensor,  # [B] float32
    num_columns: tl.tensor,
    block: tl.constexpr,
) -> None:
    row, stream, num_streams = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    index = row.to(tl.int64) * num_streams + stream
    line, ids = logits + index * num_columns, token_ids + stream * num_columns
    temperature = tl.load(temperatures + row)
    largest = _largest(line, num_columns, block)
    floor = largest
    if temperature > 0:
        floor = tl.full((), float("-inf"), tl.float32)
        top_k, top_p = tl.load(top_ks + row), tl.load(top_ps + row)
        if (top_k > 0) & (top_k < num_columns):
            floor = _kth_largest(line, num_columns, top_k, largest, block)
        if top_p < 1:
            floor = _nucleus(line, num_columns, floor, largest, temperature, top_p, block)
    key = tl.load(keys + index).to(tl.uint32, bitcast=True)
    best, column = tl.full((), float("-inf"), tl.float32), tl.full((), 0, tl.int32)
    for start in range(0, num_columns, block):
        columns = start + tl.arange(0, block)
        values = tl.load(line + columns, mask=columns < num_columns, other=float("-inf"))
        if tl.max(values, 0) >= floor:
            scores = values
            if temperature > 0:
                noise = gumbel_of(key, tl.load(ids + columns, mask=columns < num_columns, other=0))
                scores = tl.div_rn(values, temperature) + noise
            scores = tl.where(values >= floor, scores, float("-inf"))
            score, place = tl.max(scores, 0, return_indices=True, return_indices_tie_break_left=True)
            column = tl.where(score > best, start + place, column)
            best = tl.maximum(best, score)
    tl.store(drawn + index, tl.load(ids + column))
