"""Triton kernels that sample the audio rows of a step, one program per row and stream.

The parameters of each row are in tables on the device, so a captured graph can be replayed for any batch. The reference
is `engine/sampling/draw.py`.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from stretto.engine.columns import COLUMNS, LIMITS, SCALES
from stretto.engine.kernels.gpu.draw import (
    HIGHEST,
    LOWEST,
    count_digits,
    float_of,
    gumbel_of,
    middle_of,
    ordered_of,
    real_of,
    redraw_key_of,
    select_digit,
    stream_key_of,
    value_of,
)
from stretto.engine.kernels.logit_options import with_options
from stretto.engine.rules import STATE, ReplyConstants

# Roles of a row: inactive, sampled, or a copy of another row's sample.
IDLE = tl.constexpr(0)
DRAWS = tl.constexpr(1)
RECEIVES = tl.constexpr(2)


def _at(name: str) -> tl.constexpr:
    return tl.constexpr(COLUMNS.index(name))


def _state_at(name: str) -> tl.constexpr:
    return tl.constexpr(STATE.index(name))


ROLE, SLOT, OTHER, OTHER_SLOT, SAMPLES, REQUEST_KEY = map(_at, COLUMNS[:6])
(
    TASK, TEXT_MIN, TEXT_MAX, AUDIO_MIN, AUDIO_MAX, TEXT_TOP_K, AUDIO_TOP_K, DEPTH_TOP_K, SEED_KEY, FORCED_UNTIL,
    LATENT_STEPS, TAIL_ROWS, TRACK_TOTAL, FIRST_REDRAW, *_,
) = map(_at, LIMITS)  # fmt: skip
TEXT_TEMPERATURE, TEXT_TOP_P, AUDIO_TEMPERATURE, AUDIO_TOP_P, DEPTH_TEMPERATURE, DEPTH_TOP_P, GUIDANCE, *_ = map(
    _at, SCALES
)
SCRIPT_TEMPERATURE = _at("script_temperature")
RAS_WINDOW = _at("ras_window")
RAS_MAX_REPEATS = _at("ras_max_repeats")
REPETITION_PENALTY = _at("repetition_penalty")
AUDIO_START, AUDIO_END, NUM_TEXT_TOKENS, NUM_CODES, FIRST_END = map(_state_at, STATE)


class StepRules(NamedTuple):
    """Rules of the family's replies (`SegmentRules`) and sizes of the tables.

    Attributes:
        num_rows: N, the maximum number of rows in a step.
        num_others: S - 1, the number of streams other than stream 0.
        num_drawn: Number of these streams that are sampled, which come first.
        num_ids: Number of columns of the tables from `end_tables`; the last is for all other ids.
        num_end_frame: Number of ids in the frame that ends the audio; 0 for none.
        num_seen_columns: Number of columns of the repetition penalty's table; 0 without a penalty.
        track_start, track_stop: Range, among streams 1 to S - 1, of input-only streams whose ids are already in the
            table.
    """

    family: ReplyConstants
    num_rows: int
    num_others: int
    num_drawn: int
    num_sent: int
    num_tasks: int
    num_ids: int
    num_ends: int
    num_end_frame: int
    num_transition: int
    state_stride: int
    texts_stride: int
    codes_stride: int
    num_seen_columns: int
    first_seen_id: int
    track_start: int
    track_stop: int


HISTORY = tl.constexpr(64)  # rows of a reply that are loaded at once


@triton.jit
def kth_largest_of(values: tl.tensor, top_k: tl.tensor) -> tl.tensor:
    """Return the k-th largest of `values`, found by a radix select over four digits."""
    ordered = ordered_of(values)
    prefix = tl.full((), 0, tl.uint32)
    rank = top_k + tl.full((), 0, tl.int32)
    for step in range(4):
        digit, rank = select_digit(count_digits(ordered, prefix, 24 - 8 * step), rank)
        prefix = (prefix << 8) | digit
    return value_of(prefix)


@triton.jit
def nucleus_of(values: tl.tensor, floor: tl.tensor, temperature: tl.tensor, top_p: tl.tensor) -> tl.tensor:
    """Return the top-p threshold: the smallest value with less than `top_p` of the probability mass above it.

    Only values of at least `floor` contribute to the mass.
    """
    ordered = ordered_of(values)
    largest = tl.max(values, 0)
    weights = tl.exp((values - largest) / temperature)
    low = ordered_of(floor) - 1
    high = ordered_of(largest)
    wanted = top_p * tl.sum(tl.where(ordered > low, weights, 0.0), 0)
    while low + 1 < high:  # move both ends to the next value; the mass is constant in between
        middle = middle_of(low, high)
        is_above = ordered > middle
        if tl.sum(tl.where(is_above, weights, 0.0), 0) < wanted:
            high = tl.maximum(tl.max(tl.where(is_above, LOWEST, ordered), 0), low + 1)
        else:
            low = tl.min(tl.where(is_above, ordered, HIGHEST), 0) - 1
    return float_of(high)


@triton.jit
def noisiest_of(
    values: tl.tensor, token_ids: tl.tensor, key: tl.tensor, temperature: tl.tensor, floor: tl.tensor
) -> tl.tensor:
    """Return the column whose value plus noise (none at temperature 0) is largest, among values of at least `floor`."""
    scores = values
    if temperature > 0:
        scores = tl.div_rn(values, temperature) + gumbel_of(key, token_ids)
    scores = tl.where(values >= floor, scores, float("-inf"))
    _, column = tl.max(scores, 0, return_indices=True, return_indices_tie_break_left=True)
    return column


@triton.jit
def top_k_floor(values: tl.tensor, num_columns: tl.tensor, top_k: tl.tensor) -> tl.tensor:
    """Return the smallest of `values` that top-k permits."""
    floor = tl.full((), float("-inf"), tl.float32)
    if (top_k > 0) & (top_k < num_columns):
        floor = kth_largest_of(values, top_k)
    return floor


@triton.jit
def with_penalty(values: tl.tensor, is_seen: tl.tensor, penalty: tl.tensor) -> tl.tensor:
    """Return logits with the repetition penalty applied where `is_seen`, as `penalize` of the host does."""
    return tl.where(is_seen, tl.where(values < 0, values * penalty, tl.div_rn(values, penalty)), values)


@triton.jit
def kept(
    values: tl.tensor, num_columns: tl.tensor, temperature: tl.tensor, top_k: tl.tensor, top_p: tl.tensor,
    is_seen: tl.tensor, penalty: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Return the logits from which an id is sampled, and the smallest that top-k and top-p keep.

    Args:
        temperature: Temperature; 0 is greedy.
        top_k: Number of logits to keep; 0 is off.
        top_p: Probability mass to keep; 1 is off.
    """
    floor = tl.max(values, 0)
    if temperature > 0:
        floor = top_k_floor(values, num_columns, top_k)
        if top_p < 1:
            floor = nucleus_of(values, floor, temperature, top_p)
    return values, floor


@triton.jit
def redrawn_from(
    values: tl.tensor, columns: tl.tensor, repeated: tl.tensor, num_columns: tl.tensor, top_k: tl.tensor,
    constants: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return the logits from which an id is sampled again, because that in column `repeated` was rejected."""
    return values


@triton.jit
def hidden_ends(
    ids: tl.tensor, is_short: tl.tensor, at: tl.tensor, mine: tl.tensor, plan_stride: tl.constexpr,
    constants: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return True for end ids that a row may not have; `is_short` is True before the minimum length."""
    return is_short


@triton.jit
def repeated(
    token: tl.tensor, is_code: tl.tensor, history: tl.tensor, mine: tl.tensor, position: tl.tensor,
    audio_start: tl.tensor, row_stride: tl.constexpr, plan_stride: tl.constexpr, constants: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return True if a code occurs too often in the last audio rows.

    Args:
        row_stride: Distance between the ids of two positions in `history`.
    """
    count = tl.full((), 0, tl.int32)
    window = real_of(mine + RAS_WINDOW * plan_stride).to(tl.int32)
    if (window > 0) & is_code:
        lanes = tl.arange(0, HISTORY)
        # In blocks, because stream 0's history is in host memory.
        for start in range(tl.maximum(audio_start, position - window), position, HISTORY):
            inside = start + lanes < position
            tokens = tl.load(history + (start + lanes) * row_stride, mask=inside, other=0)
            count += tl.sum((inside & (tokens == token)).to(tl.int32), 0)
    return (window > 0) & is_code & (count >= real_of(mine + RAS_MAX_REPEATS * plan_stride))


class SamplingFunctions(NamedTuple):
    """Triton functions by which `draw_streams_kernel` samples ids.

    The program of a family may replace some of them (`SAMPLING_FUNCTIONS._replace`), for stream 0
    (`StepProgram.sampling_functions`) and for the others (`other_functions`). Arguments and results of all but the last
    are those of the functions above.

    Attributes:
        counted: Returns True for each id that the penalty applies to, in a family without a table of counted ids; None
            if there is no such penalty. It gets the ids, the history, the positions of the row and of the first audio
            row, and `row_stride` and `constants` as in `repeated`.
    """

    penalized: Any
    kept: Any
    redrawn_from: Any
    hidden_ends: Any
    repeated: Any
    counted: Any


SAMPLING_FUNCTIONS = SamplingFunctions(with_penalty, kept, redrawn_from, hidden_ends, repeated, None)


@triton.jit
def line_of(
    logits: tl.tensor, offset: tl.tensor, columns: tl.tensor, inside: tl.tensor, other: tl.constexpr
) -> tl.tensor:
    """Return the logits of `columns`, with their offset if there is one, and `other` outside the line."""
    values = tl.load(logits + columns, mask=inside, other=other)
    if offset is not None:
        values += tl.load(offset + columns, mask=inside, other=0.0)
    return values


@triton.jit
def _guided(
    line: tl.tensor, offset: tl.tensor, is_guided: tl.tensor, row: tl.tensor, mine: tl.tensor, columns: tl.tensor,
    inside: tl.tensor, logits_stride: tl.constexpr, plan_stride: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return a row's logits, with guidance if the row has a CFG partner and the stream is guided."""
    values = line_of(line + row.to(tl.int64) * logits_stride, offset, columns, inside, float("-inf"))
    other = tl.load(mine + OTHER * plan_stride)
    if (other != row) & is_guided:
        unconditional = line_of(line + other.to(tl.int64) * logits_stride, offset, columns, inside, 0.0)
        guided = unconditional + real_of(mine + GUIDANCE * plan_stride) * (values - unconditional)
        values = tl.where(inside, guided, float("-inf"))
    return values


@triton.jit
def _parameters_of(
    mine: tl.tensor, first_stream: tl.constexpr, plan_stride: tl.constexpr, is_greedy: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return temperature, top-k and top-p for a stream."""
    if first_stream == 0:
        temperature = real_of(mine + AUDIO_TEMPERATURE * plan_stride)
        top_k = tl.load(mine + AUDIO_TOP_K * plan_stride)
        top_p = real_of(mine + AUDIO_TOP_P * plan_stride)
    else:
        temperature = real_of(mine + DEPTH_TEMPERATURE * plan_stride)
        top_k = tl.load(mine + DEPTH_TOP_K * plan_stride)
        top_p = real_of(mine + DEPTH_TOP_P * plan_stride)
    if is_greedy:
        temperature *= 0
    return temperature, top_k, top_p


@triton.jit
def place_of(
    mine: tl.tensor, length: tl.tensor, state: tl.tensor, plan_stride: tl.constexpr, state_stride: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return a row's slot, its position, and the position of the reply's first audio row."""
    slot = tl.load(mine + SLOT * plan_stride).to(tl.int64)
    return slot, tl.load(length), tl.load(state + slot * state_stride + AUDIO_START)


@triton.jit(do_not_specialize=["first_lane"])
def draw_streams_kernel(
    drawn: tl.tensor,  # [N, S] int32, written
    logits: tl.tensor,  # [N, k * C] float32 of the streams of this launch, with row stride `logits_stride`
    offset: tl.tensor,  # [S * C] float32, or None
    token_ids: tl.tensor,  # [S, C] int64
    codebooks: tl.tensor,  # [2, S] int64: the first code id of each codebook, and the id after the last one
    is_guided: tl.tensor,  # [S] int64
    plan: tl.tensor,  # table of the step, COLUMNS by row, int32
    lengths: tl.tensor,  # [N] int32
    state: tl.tensor,  # [R, 5 + C] int64
    history: tl.tensor,  # ids of the first of the streams, [R, T, ...] int32
    seen: tl.tensor,  # [R, V + 1] uint8, 1 for each of the first V columns that the penalty counts; or None
    places: tl.tensor,  # [n, C] uint8, 1 for columns that are forbidden in a row of a frame; or None
    first_lane: tl.tensor,  # index of the first stream of this launch
    num_streams: tl.constexpr,  # S
    logits_stride: tl.constexpr, codebooks_stride: tl.constexpr, plan_stride: tl.constexpr, state_stride: tl.constexpr,
    history_slot_stride: tl.constexpr, history_row_stride: tl.constexpr, num_seen_columns: tl.constexpr,
    num_columns: tl.constexpr, first_stream: tl.constexpr, block: tl.constexpr,
    num_ends: tl.constexpr,  # number of end columns (the last ones), which are masked before the minimum length
    num_places: tl.constexpr,  # rows of a frame
    shares: tl.constexpr,  # True if the unconditional row also gets the ids
    is_greedy: tl.constexpr,  # True if the most probable id is chosen at every temperature
    constants: tl.constexpr,  # constants of the family (`StepProgram.rule_constants`)
    # The `SamplingFunctions`.
    penalized: tl.constexpr, kept: tl.constexpr, redrawn_from: tl.constexpr, hidden_ends: tl.constexpr,
    repeated: tl.constexpr, counted: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0)
    stream = tl.program_id(1) + first_lane
    logits -= first_lane * num_columns
    mine = plan + row
    if tl.load(mine + ROLE * plan_stride) != DRAWS:
        return
    slot, position, audio_start = place_of(mine, lengths + row, state, plan_stride, state_stride)
    if (audio_start < 0) | (position < audio_start):
        return
    columns = tl.arange(0, block)
    inside = columns < num_columns
    stream_columns = stream * num_columns + columns
    is_guiding = tl.load(is_guided + stream) != 0
    values = _guided(logits, offset, is_guiding, row, mine, stream_columns, inside, logits_stride, plan_stride)
    is_seen = columns < 0
    penalty = tl.full((), 1.0, tl.float32)
    if seen is not None:
        mine_seen = seen + slot * num_seen_columns + columns
        is_seen = tl.load(mine_seen, mask=columns < num_seen_columns - 1, other=0) != 0
        penalty = real_of(mine + REPETITION_PENALTY * plan_stride)
        values = penalized(values, is_seen, penalty)
    ids = tl.load(token_ids + stream_columns, mask=inside, other=0)
    before = history + slot * history_slot_stride + stream
    if counted is not None:
        is_seen = counted(ids, before, position, audio_start, history_row_stride, constants)
        penalty = real_of(mine + REPETITION_PENALTY * plan_stride)
        values = penalized(values, is_seen, penalty)
    is_short = position - audio_start < tl.load(mine + AUDIO_MIN * plan_stride)
    is_hidden = (columns >= num_columns - num_ends) & hidden_ends(
        ids, is_short, state + slot * state_stride, mine, plan_stride, constants
    )
    values = tl.where(is_hidden, float("-inf"), values)
    if places is not None:
        forbidden = places + (position - audio_start) % num_places * num_columns + columns
        values = tl.where(tl.load(forbidden, mask=inside, other=1) != 0, float("-inf"), values)
    permitted = values
    if first_stream == 0:
        permitted = with_options(values, mine, plan_stride)
    temperature, top_k, top_p = _parameters_of(mine, first_stream, plan_stride, is_greedy)
    key = stream_key_of(tl.load(mine + SEED_KEY * plan_stride), position, first_stream + stream)
    permitted, floor = kept(permitted, num_columns, temperature, top_k, top_p, is_seen, penalty)
    column = noisiest_of(permitted, ids, key, temperature, floor)
    token = tl.load(token_ids + stream * num_columns + column)
    is_code = (token >= tl.load(codebooks + stream)) & (token < tl.load(codebooks + codebooks_stride + stream))
    if repeated(token, is_code, before, mine, position, audio_start, history_row_stride, plan_stride, constants):
        again = redrawn_from(values, columns, column, num_columns, top_k, constants)
        column = noisiest_of(again, ids, redraw_key_of(key), temperature * 0 + 1, float("-inf"))
        token = tl.load(token_ids + stream * num_columns + column)
    tl.store(drawn + row * num_streams + stream, token.to(tl.int32))
    if shares:
        tl.store(drawn + tl.load(mine + OTHER * plan_stride) * num_streams + stream, token.to(tl.int32))
