"""Triton kernels that sample text ids from about 150,000 logits per row, most of which are read only once.

The first kernel reads all logits once, in parallel blocks. It masks forbidden ids and stores the maximum of every group
of 128 columns. If top-k keeps k logits, the k-th largest group maximum is a lower bound on these logits, so only groups
whose maximum reaches it matter. The second kernel, with one program per row, lists these groups (about 50 of 1,200 at
top-k 50) and applies top-k to them by a radix select, and top-p by bisection. For top-p without top-k, it starts with
the 128 groups with the largest maxima, and reads all columns only if these groups have too little mass.
"""

import triton
import triton.language as tl

from stretto.engine.kernels.gpu.draw import (
    HIGHEST,
    LOWEST,
    count_digits,
    float_of,
    gumbel_of,
    middle_of,
    ordered_of,
    real_of,
    select_digit,
    stream_key_of,
    value_of,
)
from stretto.engine.kernels.gpu.step_draw import (
    AUDIO_START,
    DRAWS,
    NUM_TEXT_TOKENS,
    REPETITION_PENALTY,
    ROLE,
    SEED_KEY,
    SLOT,
    TASK,
    TEXT_MIN,
    TEXT_TEMPERATURE,
    TEXT_TOP_K,
    TEXT_TOP_P,
    kth_largest_of,
    with_penalty,
)

WIDTH = tl.constexpr(128)  # columns per group
TILE = tl.constexpr(32)  # groups processed at once
FIRST_REACH = tl.constexpr(128)  # groups examined first for a nucleus without top-k
NOISE_SPAN = tl.constexpr(20.0)  # as in `engine/sampling/draw.py`


@triton.jit
def text_maxima_kernel(
    logits: tl.tensor,  # [N, V] float32, with row stride `logits_stride`; masked in place
    maxima: tl.tensor,  # [N, G] float32, written
    offset: tl.tensor,  # [V] float32, or None
    denied: tl.tensor,  # [T, 2, V] bool
    seen: tl.tensor,  # [R, V + 1] uint8, ids counted by a repetition penalty; or None
    plan: tl.tensor,
    state: tl.tensor,
    logits_stride: tl.constexpr,
    plan_stride: tl.constexpr,
    state_stride: tl.constexpr,
    num_columns: tl.constexpr,
    num_groups: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    first_group = tl.program_id(1) * TILE
    mine = plan + row
    if tl.load(mine + ROLE * plan_stride) != DRAWS:
        return
    slot = tl.load(mine + SLOT * plan_stride).to(tl.int64)
    of_slot = state + slot * state_stride
    if tl.load(of_slot + AUDIO_START) >= 0:
        return
    may_end = tl.load(of_slot + NUM_TEXT_TOKENS) >= tl.load(mine + TEXT_MIN * plan_stride)
    mask = denied + (tl.load(mine + TASK * plan_stride).to(tl.int64) * 2 + may_end.to(tl.int64)) * num_columns
    groups = first_group + tl.arange(0, TILE)
    columns = groups[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    inside = columns < num_columns
    line = logits + row.to(tl.int64) * logits_stride
    values = tl.load(line + columns, mask=inside, other=float("-inf"))
    if offset is not None:
        values += tl.load(offset + columns, mask=inside, other=0.0)
    if seen is not None:
        is_seen = tl.load(seen + slot * (num_columns + 1) + columns, mask=inside, other=0) != 0
        values = with_penalty(values, is_seen, real_of(mine + REPETITION_PENALTY * plan_stride))
    is_denied = tl.load(mask + columns, mask=inside, other=1) != 0
    values = tl.where(is_denied, float("-inf"), values)
    tl.store(line + columns, values, mask=inside)
    tl.store(maxima + row * num_groups + groups, tl.max(values, 1), mask=groups < num_groups)


@triton.jit
def _list(
    listed: tl.tensor, maxima: tl.tensor, bound: tl.tensor, num_groups: tl.constexpr, block: tl.constexpr
) -> tl.tensor:
    """Write to `listed` the indices of groups whose maximum reaches `bound`, and return their number."""
    groups = tl.arange(0, block)
    reaches = ((maxima >= bound) & (groups < num_groups)).to(tl.int32)
    tl.debug_barrier()
    tl.store(listed + tl.cumsum(reaches, 0) - 1, groups, mask=reaches != 0)
    tl.debug_barrier()
    return tl.sum(reaches, 0)


@triton.jit
def _tile(
    line: tl.tensor, listed: tl.tensor, start: tl.tensor, num_listed: tl.tensor, num_columns: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Return columns and logits of TILE groups from entry `start` of the list, [TILE * WIDTH] each."""
    entries = start + tl.arange(0, TILE)
    group = tl.load(listed + entries, mask=entries < num_listed, other=0)
    columns = group[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    inside = (entries < num_listed)[:, None] & (columns < num_columns)
    values = tl.load(line + columns, mask=inside, other=float("-inf"))
    return tl.reshape(columns, (TILE * WIDTH,)), tl.reshape(values, (TILE * WIDTH,))


@triton.jit
def _kth_largest(
    line: tl.tensor, listed: tl.tensor, num_listed: tl.tensor, top_k: tl.tensor, num_columns: tl.constexpr
) -> tl.tensor:
    """Return the k-th largest logit of the listed groups, found by a radix select over four digits."""
    prefix = tl.full((), 0, tl.uint32)
    rank = top_k + tl.full((), 0, tl.int32)
    for step in range(4):
        counts = tl.zeros((256,), tl.int32)
        for start in range(0, num_listed, TILE):
            _, values = _tile(line, listed, start, num_listed, num_columns)
            counts += count_digits(ordered_of(values), prefix, 24 - 8 * step)
        digit, rank = select_digit(counts, rank)
        prefix = (prefix << 8) | digit
    return value_of(prefix)


@triton.jit
def _split(
    line: tl.tensor, listed: tl.tensor, num_listed: tl.tensor, ordered: tl.tensor, largest: tl.tensor,
    temperature: tl.tensor, num_columns: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Return the mass of the listed logits above a threshold, and the nearest logits on either side of it.

    The mass is the sum of exp((logit - largest) / temperature). The threshold and both logits are in the form that
    `ordered_of` returns.
    """
    mass = tl.full((), 0.0, tl.float32)
    below = tl.full((), LOWEST, tl.int32)
    above = tl.full((), HIGHEST, tl.int32)
    for start in range(0, num_listed, TILE):
        _, values = _tile(line, listed, start, num_listed, num_columns)
        weights = tl.exp((values - largest) / temperature)
        orders = ordered_of(values)
        is_above = orders > ordered
        mass += tl.sum(tl.where(is_above, weights, 0.0), 0)
        below = tl.maximum(below, tl.max(tl.where(is_above, LOWEST, orders), 0))
        above = tl.minimum(above, tl.min(tl.where(is_above, orders, HIGHEST), 0))
    return mass, below, above


@triton.jit
def _nucleus(
    line: tl.tensor, listed: tl.tensor, num_listed: tl.tensor, wanted: tl.tensor, low: tl.tensor, largest: tl.tensor,
    temperature: tl.tensor, num_columns: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return the top-p threshold of the listed groups.

    It is the smallest value with a mass of less than `wanted` above it. `low`, a result of `ordered_of`, is a lower
    bound on the threshold.
    """
    high = ordered_of(largest)
    while low + 1 < high:  # move both ends to the next logit; the mass is constant in between
        middle = middle_of(low, high)
        mass, below, above = _split(line, listed, num_listed, middle, largest, temperature, num_columns)
        if mass < wanted:
            high = tl.maximum(below, low + 1)
        else:
            low = above - 1
    return float_of(high)


@triton.jit
def _noisiest(
    line: tl.tensor, listed: tl.tensor, num_listed: tl.tensor, key: tl.tensor, temperature: tl.tensor,
    floor: tl.tensor, num_columns: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return the column whose logit plus noise is largest, or the first of several equal ones.

    Only logits of at least `floor` are considered.
    """
    best = tl.full((), float("-inf"), tl.float32)
    column = tl.full((), 0, tl.int32)
    for start in range(0, num_listed, TILE):
        columns, values = _tile(line, listed, start, num_listed, num_columns)
        scores = values
        if temperature > 0:
            scores = tl.div_rn(values, temperature) + gumbel_of(key, columns)
        scores = tl.where(values >= floor, scores, float("-inf"))
        score = tl.max(scores, 0)
        first = tl.min(tl.where(scores == score, columns, num_columns), 0)
        column = tl.where(score > best, first, column)
        best = tl.maximum(best, score)
    return column


@triton.jit
def _bound(
    line: tl.tensor, listed: tl.tensor, best: tl.tensor, limited: tl.tensor, temperature: tl.tensor,
    top_k: tl.tensor, top_p: tl.tensor, num_columns: tl.constexpr, num_groups: tl.constexpr, block: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Return a lower bound on the kept logits, and the mass that top-p requires.

    For top-p without top-k, the bound is a guess: the caller must check that the logits above it have enough mass.
    """
    lowest = tl.full((), float("-inf"), tl.float32)
    largest = tl.max(best, 0)
    bound = lowest
    wanted = tl.full((), 0.0, tl.float32)
    if limited:
        if top_k <= num_groups:
            bound = kth_largest_of(best, top_k)
    elif top_p < 1:
        num_listed = _list(listed, best, lowest, num_groups, block)
        below = ordered_of(lowest) - 1
        mass, _, _ = _split(line, listed, num_listed, below, largest, temperature, num_columns)
        wanted = top_p * mass
        if num_groups > FIRST_REACH:
            bound = kth_largest_of(best, FIRST_REACH)
    else:
        bound = largest - NOISE_SPAN * temperature
    return bound, wanted


@triton.jit
def draw_text_kernel(
    drawn: tl.tensor,  # [N] int32, written
    logits: tl.tensor,  # [N, V] float32, masked
    maxima: tl.tensor,  # [N, G] float32
    lists: tl.tensor,  # [N, G] int32, scratch: groups that a row examines
    plan: tl.tensor,
    lengths: tl.tensor,
    state: tl.tensor,
    logits_stride: tl.constexpr,
    plan_stride: tl.constexpr,
    state_stride: tl.constexpr,
    num_columns: tl.constexpr,
    num_groups: tl.constexpr,
    block: tl.constexpr,  # at least `num_groups`
) -> None:
    row = tl.program_id(0)
    mine = plan + row
    if tl.load(mine + ROLE * plan_stride) != DRAWS:
        return
    if tl.load(state + tl.load(mine + SLOT * plan_stride).to(tl.int64) * state_stride + AUDIO_START) >= 0:
        return
    line = logits + row.to(tl.int64) * logits_stride
    listed = lists + row * num_groups
    groups = tl.arange(0, block)
    best = tl.load(maxima + row * num_groups + groups, mask=groups < num_groups, other=float("-inf"))
    largest = tl.max(best, 0)
    temperature = real_of(mine + TEXT_TEMPERATURE * plan_stride)
    top_k = tl.load(mine + TEXT_TOP_K * plan_stride)
    top_p = real_of(mine + TEXT_TOP_P * plan_stride)
    key = stream_key_of(tl.load(mine + SEED_KEY * plan_stride), tl.load(lengths + row), row * 0)
    limited = (top_k > 0) & (top_k < num_columns)
    floor = largest
    bound = largest
    wanted = tl.full((), 0.0, tl.float32)
    if temperature > 0:
        bound, wanted = _bound(line, listed, best, limited, temperature, top_k, top_p, num_columns, num_groups, block)
    num_listed = _list(listed, best, bound, num_groups, block)
    if temperature > 0:
        floor = tl.full((), float("-inf"), tl.float32)
        if limited:
            floor = _kth_largest(line, listed, num_listed, top_k, num_columns)
        low = ordered_of(tl.maximum(bound, floor)) - 1
        if top_p < 1:
            reached, _, _ = _split(line, listed, num_listed, low, largest, temperature, num_columns)
            if limited:
                wanted = top_p * reached
            elif reached < wanted:
                num_listed = _list(listed, best, floor, num_groups, block)
                low = ordered_of(floor) - 1
            floor = _nucleus(line, listed, num_listed, wanted, low, largest, temperature, num_columns)
    column = _noisiest(line, listed, num_listed, key, temperature, floor, num_columns)
    tl.store(drawn + row, column)
