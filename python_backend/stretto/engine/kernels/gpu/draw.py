"""Triton functions of all sampling kernels, and a kernel that samples as `sampling.draw` does, with the same noise.

The kernel samples where torch runs the step; otherwise `step_draw.py` samples.
"""

import torch
import triton
import triton.language as tl

from stretto.engine.sampling.parameters import DrawParams


@triton.jit
def real_of(words: tl.tensor) -> tl.tensor:
    """Load a float32 value stored as an integer word."""
    return tl.load(words).to(tl.float32, bitcast=True)


@triton.jit
def mixed(x: tl.tensor) -> tl.tensor:
    """Return the hash lowbias32 of `x`, uint32."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    return x


@triton.jit
def stream_key_of(seed_key: tl.tensor, position: tl.tensor, stream: tl.tensor) -> tl.tensor:
    """Return the noise key of one row and stream, uint32, as `sampling.stream_keys` does."""
    row = mixed(seed_key.to(tl.uint32, bitcast=True) + position.to(tl.uint32) * 0x9E3779B1)
    return mixed(row + stream.to(tl.uint32) * 0x85EBCA6B)


@triton.jit
def attempt_key_of(key: tl.tensor, number: tl.tensor) -> tl.tensor:
    """Return the key of a row that is sampled again `number` times, uint32, as `sampling.attempt_keys` does."""
    return tl.where(number == 0, key, mixed(key + number.to(tl.uint32) * 0x165667B1))


@triton.jit
def redraw_key_of(key: tl.tensor) -> tl.tensor:
    """Return the key for sampling a second time, as `sampling.redraw_keys` does."""
    return mixed(key + 0x27D4EB2F)


@triton.jit
def uniform_of(key: tl.tensor, token_ids: tl.tensor) -> tl.tensor:
    """Return uniform noise per token id, as `sampling.uniform` does."""
    bits = mixed(key + token_ids.to(tl.uint32) * 0xC2B2AE35)
    return ((bits >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def gumbel_of(key: tl.tensor, token_ids: tl.tensor) -> tl.tensor:
    """Return Gumbel noise per token id, as `sampling.gumbel` does, but with the GPU's logarithm."""
    return -tl.log(-tl.log(uniform_of(key, token_ids)))


MAX_BLOCK = 4096


def draw_on_device(
    logits: torch.Tensor, token_ids: torch.Tensor, keys: torch.Tensor, params: DrawParams
) -> torch.Tensor:
    """Sample ids with the kernel, as `sampling.draw` does.

    An id may differ if the last bit of a logarithm or of a sum decides between two candidates.
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
        params.of_all,
        num_warps=4 if block <= 1024 else 8,
    )
    return drawn


@triton.jit
def ordered_of(values: tl.tensor) -> tl.tensor:
    """Map float32 `values` to int32 values in the same order; the bit operation is its own inverse."""
    bits = values.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def float_of(ordered: tl.tensor) -> tl.tensor:
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def middle_of(low: tl.tensor, high: tl.tensor) -> tl.tensor:
    """Return (low + high) / 2, rounded down, without overflow of int32."""
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
def count_digits(ordered: tl.tensor, prefix: tl.tensor, shift: tl.tensor) -> tl.tensor:
    """Count 8-bit digits, one step of a radix select, and return int32 [256].

    Args:
        ordered: Values from `ordered_of`. Only those whose higher digits equal `prefix` are counted.
        prefix: Higher digits, uint32, offset so that the smallest int32 is 0.
        shift: Position of the digit in bits: 24, 16, 8 or 0.
    """
    digits = (ordered.to(tl.uint32, bitcast=True) ^ 0x80000000) >> shift
    return tl.histogram((digits & 0xFF).to(tl.int32), 256, mask=(digits >> 8) == prefix)


@triton.jit
def select_digit(counts: tl.tensor, rank: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Return the digit of the value with rank `rank` (1 is the largest), and its rank among values with that digit."""
    digits = tl.arange(0, 256)
    reached = tl.cumsum(counts, 0, reverse=True)
    larger = reached - counts
    packed = tl.sum(tl.where((reached >= rank) & (larger < rank), larger * 256 + digits, 0), 0)
    return (packed & 0xFF).to(tl.uint32), rank - (packed >> 8)


@triton.jit
def value_of(prefix: tl.tensor) -> tl.tensor:
    """Return the float whose four digits are `prefix` (see `count_digits`)."""
    return float_of((prefix ^ 0x80000000).to(tl.int32, bitcast=True))


@triton.jit
def _kth_largest(line: tl.tensor, num_columns: tl.tensor, top_k: tl.tensor, block: tl.constexpr) -> tl.tensor:
    """Return the k-th largest logit, found by a radix select over four digits."""
    prefix = tl.full((), 0, tl.uint32)
    rank = top_k.to(tl.int32)
    for step in range(4):
        counts = tl.zeros((256,), tl.int32)
        for start in range(0, num_columns, block):
            columns = start + tl.arange(0, block)
            values = tl.load(line + columns, mask=columns < num_columns, other=float("-inf"))
            counts += count_digits(ordered_of(values), prefix, 24 - 8 * step)
        digit, rank = select_digit(counts, rank)
        prefix = (prefix << 8) | digit
    return value_of(prefix)


LOWEST = tl.constexpr(-(2**31))
HIGHEST = tl.constexpr(2**31 - 1)


@triton.jit
def _split(
    line: tl.tensor,
    num_columns: tl.tensor,
    ordered: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    block: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the mass of the logits above a threshold, and the nearest logits on either side of it.

    The mass is the sum of exp((logit - largest) / temperature). The threshold and both logits are in the form that
    `ordered_of` returns.
    """
    mass = tl.full((), 0.0, tl.float32)
    below = tl.full((), LOWEST, tl.int32)
    above = tl.full((), HIGHEST, tl.int32)
    for start in range(0, num_columns, block):
        columns = start + tl.arange(0, block)
        values = tl.load(line + columns, mask=columns < num_columns, other=float("-inf"))
        weights = tl.exp((values - largest) / temperature)
        orders = ordered_of(values)
        is_above = orders > ordered
        mass += tl.sum(tl.where(is_above, weights, 0.0), 0)
        below = tl.maximum(below, tl.max(tl.where(is_above, LOWEST, orders), 0))
        above = tl.minimum(above, tl.min(tl.where(is_above, orders, HIGHEST), 0))
    return mass, below, above


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
    """Return the top-p threshold: the smallest value with less than `top_p` of the mass above it.

    Only logits of at least `floor` contribute to the mass (see `_split`).
    """
    low = ordered_of(floor) - 1
    high = ordered_of(largest)
    mass, _, _ = _split(line, num_columns, low, largest, temperature, block)
    wanted = top_p * mass
    while low + 1 < high:  # move both ends to the next logit; the mass is constant in between
        middle = middle_of(low, high)
        mass, below, above = _split(line, num_columns, middle, largest, temperature, block)
        if mass < wanted:
            high = tl.maximum(below, low + 1)
        else:
            low = above - 1
    return float_of(high)


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
    top_p_of_all: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    stream = tl.program_id(1)
    num_streams = tl.num_programs(1)
    index = row.to(tl.int64) * num_streams + stream
    line = logits + index * num_columns
    ids = token_ids + stream * num_columns
    temperature = tl.load(temperatures + row)
    largest = _largest(line, num_columns, block)
    floor = largest
    if temperature > 0:
        floor = tl.full((), float("-inf"), tl.float32)
        top_k = tl.load(top_ks + row)
        top_p = tl.load(top_ps + row)
        if (top_k > 0) & (top_k < num_columns):
            floor = _kth_largest(line, num_columns, top_k, block)
        if top_p < 1:
            least = floor
            if top_p_of_all:
                least = tl.full((), float("-inf"), tl.float32)
            floor = tl.maximum(floor, _nucleus(line, num_columns, least, largest, temperature, top_p, block))
    key = tl.load(keys + index).to(tl.uint32, bitcast=True)
    best = tl.full((), float("-inf"), tl.float32)
    column = tl.full((), 0, tl.int32)
    for start in range(0, num_columns, block):
        columns = start + tl.arange(0, block)
        values = tl.load(line + columns, mask=columns < num_columns, other=float("-inf"))
        if tl.max(values, 0) >= floor:
            scores = values
            if temperature > 0:
                noise = gumbel_of(key, tl.load(ids + columns, mask=columns < num_columns, other=0))
                scores = tl.div_rn(values, temperature) + noise
            scores = tl.where(values >= floor, scores, float("-inf"))
            score, offset = tl.max(scores, 0, return_indices=True, return_indices_tie_break_left=True)
            column = tl.where(score > best, start + offset, column)
            best = tl.maximum(best, score)
    tl.store(drawn + index, tl.load(ids + column))
