"""Triton kernel that moves the alignment pointers of a step, and functions that `advance_kernel` calls in each row."""

import triton
import triton.language as tl

from stretto.engine.kernels.gpu.device_rules import RULES, device_rules
from stretto.engine.kernels.gpu.draw import real_of, uniform_of
from stretto.engine.kernels.gpu.step_draw import (
    AUDIO_END,
    AUDIO_MAX,
    AUDIO_MIN,
    DRAWS,
    ROLE,
    SCRIPT_TEMPERATURE,
    SEED_KEY,
    line_of,
    place_of,
    stream_key_of,
)
from stretto.engine.rules import STATE
from stretto.families.tiny.mechanism import rules as script_rules

OWN = device_rules(script_rules.__name__)
NUM_ENTRIES = tl.constexpr(len(STATE))
POINTER = tl.constexpr(len(STATE) + 1)


@triton.jit
def draw_script_kernel(
    drawn: tl.tensor,  # [N] int32, written: stream 0
    logits: tl.tensor,  # [N, C] float32, with row stride `logits_stride`
    offset: tl.tensor,  # [C] float32, or None
    plan: tl.tensor,  # `step_draw.py`, [C, N] int32
    lengths: tl.tensor,  # [N] int32
    state: tl.tensor,  # [R, 5 + C] int64, written: the pointers
    entries: tl.tensor,  # [R, E + 1] int32
    logits_stride: tl.constexpr,
    plan_stride: tl.constexpr,
    state_stride: tl.constexpr,
    entries_stride: tl.constexpr,
    script: tl.constexpr,  # `PointerConstants`
    family: tl.constexpr,  # `ReplyConstants`
    num_columns: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    mine = plan + row
    if tl.load(mine + ROLE * plan_stride) != DRAWS:
        return
    slot, position, audio_start = place_of(mine, lengths + row, state, plan_stride, state_stride)
    if (audio_start < 0) | (position < audio_start):
        return
    at = state + slot * state_stride
    entry = entries + slot * entries_stride
    pointer = tl.load(at + POINTER)
    stay = OWN.stay_column(tl.load(entry + pointer), pointer, script)
    columns = tl.arange(0, block)
    line = logits + row.to(tl.int64) * logits_stride
    inside = columns < num_columns
    values = line_of(line, offset, columns, inside, float("-inf"))
    largest = tl.max(values, 0)
    of_stay = tl.max(tl.where(columns == stay, values, float("-inf")), 0)
    others = tl.sum(tl.where(columns == stay, 0.0, tl.exp(values - largest)), 0)
    log_odds = tl.log(others) - (of_stay - largest)
    temperature = real_of(mine + SCRIPT_TEMPERATURE * plan_stride)
    key = stream_key_of(tl.load(mine + SEED_KEY * plan_stride), position, row * 0)
    threshold = tl.where(temperature > 0, uniform_of(key, row * 0), 0.5)
    probability = 1 / (1 + tl.exp(-log_odds / tl.where(temperature > 0, temperature, 1.0)))
    frame = position - audio_start
    audio_max = tl.load(mine + AUDIO_MAX * plan_stride)
    is_over = RULES.meets_limit(frame, audio_max, position, family)
    may_end = frame >= tl.load(mine + AUDIO_MIN * plan_stride)
    in_audio = (tl.load(at + AUDIO_END) < 0) & (is_over == 0)
    pointer, moves, ends = OWN.move_pointer(
        probability > threshold, pointer, tl.load(at + NUM_ENTRIES), may_end, in_audio
    )
    tl.store(at + POINTER, pointer)
    tl.store(drawn + row, OWN.pointer_token(tl.load(entry + pointer), moves, ends, script).to(tl.int32))


@triton.jit
def text_is_full(at: tl.tensor, position: tl.tensor, constants: tl.constexpr) -> tl.tensor:
    """Return True if a text has its maximum number of entries."""
    return tl.load(at + NUM_ENTRIES) >= constants.max_entries


@triton.jit
def finish_row(
    laid: tl.tensor, lanes: tl.tensor, token: tl.tensor, in_text: tl.tensor, in_audio: tl.tensor, at: tl.tensor,
    entries: tl.tensor, constants: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return the other streams with the index stream, and add an entry; see `finish_row` of `advance.py`."""
    num_entries = tl.load(at + NUM_ENTRIES)
    index = OWN.pointer_index(token, in_text, in_audio, num_entries, tl.load(at + POINTER), constants)
    is_entry = in_text & OWN.is_entry(token, constants)
    tl.store(entries + num_entries + 1, token.to(tl.int32), mask=is_entry)
    tl.store(at + NUM_ENTRIES, num_entries + is_entry)
    return tl.where(lanes == constants.index_stream - 1, index.to(tl.int32), laid)
