"""Triton kernel that writes the given rows of a step, and functions for the sampling of codes."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from stretto.engine.kernels.gpu.device_rules import RULES, device_rules
from stretto.engine.kernels.gpu.draw import real_of
from stretto.engine.kernels.gpu.step_draw import (
    AUDIO_END,
    AUDIO_MAX,
    AUDIO_START,
    DRAWS,
    HISTORY,
    RAS_MAX_REPEATS,
    RAS_WINDOW,
    ROLE,
    SLOT,
    TRACK_TOTAL,
)
from stretto.engine.rules import STATE
from stretto_cosyvoice3.mechanism import rules as group_rules

OWN = device_rules(group_rules.__name__)
NUM_GIVEN, NUM_IN_GROUP, NUM_FIRST = (tl.constexpr(len(STATE) + column) for column in range(3))


class GroupRules(NamedTuple):
    """Compile-time constants of `groups_kernel`.

    Attributes:
        family: Constants of the family that `engine/rules.py` needs.
        lane: Index of the text stream among streams 1 to S - 1.
    """

    groups: Any
    family: Any
    num_rows: int
    lane: int
    state_stride: int
    codes_stride: int
    num_others: int


@triton.jit
def groups_kernel(
    drawn: tl.tensor,  # [N] int32: sampled ids of stream 0; written: the ids that the rows have
    codes: tl.tensor,  # [R, T + 1, S - 1] int32, written: the text stream
    state: tl.tensor,  # [R, 5 + C] int64, written: the columns of `CodeRules`
    plan: tl.tensor,  # `step_draw.py`, [C, N] int32
    lengths: tl.tensor,  # [N] int32
    rules: tl.constexpr,
) -> None:
    family: tl.constexpr = rules.family
    groups: tl.constexpr = rules.groups
    row = tl.program_id(0)
    mine = plan + row
    if tl.load(mine + ROLE * rules.num_rows) != DRAWS:
        return
    slot = tl.load(mine + SLOT * rules.num_rows).to(tl.int64)
    position = tl.load(lengths + row).to(tl.int64)
    at = state + slot * rules.state_stride
    audio_start = tl.load(at + AUDIO_START)
    _, _, in_audio = RULES.segment_flags(position, audio_start, tl.load(at + AUDIO_END))
    audio_max = tl.load(mine + AUDIO_MAX * rules.num_rows)
    is_over = RULES.meets_limit(position - audio_start, audio_max, position, family)
    num_given = tl.load(at + NUM_GIVEN)
    token, is_given, after, num_in_group = OWN.lay_row(
        tl.load(drawn + row).to(tl.int64), in_audio & (is_over == 0), num_given, tl.load(at + NUM_IN_GROUP),
        tl.load(at + NUM_FIRST), tl.load(mine + TRACK_TOTAL * rules.num_rows), family.end_of_audio, groups,
    )  # fmt: skip
    tl.store(drawn + row, token.to(tl.int32))
    word = tl.where(is_given, -1 - num_given, family.pad_id).to(tl.int32)
    tl.store(codes + slot * rules.codes_stride + position * rules.num_others + rules.lane, word)
    tl.store(at + NUM_GIVEN, after)
    tl.store(at + NUM_IN_GROUP, num_in_group)


@triton.jit
def hidden_ends(
    ids: tl.tensor, is_short: tl.tensor, at: tl.tensor, mine: tl.tensor, plan_stride: tl.constexpr,
    constants: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return True for end ids that a row may not have."""
    is_free = tl.load(at + NUM_GIVEN) >= tl.load(mine + TRACK_TOTAL * plan_stride)
    return OWN.hides_end(ids == constants.fill_id, is_short, is_free)


@triton.jit
def repeated(
    token: tl.tensor, is_code: tl.tensor, history: tl.tensor, mine: tl.tensor, position: tl.tensor,
    audio_start: tl.tensor, row_stride: tl.constexpr, plan_stride: tl.constexpr, constants: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return True if a code, or the id that ends a group, occurs too often.

    Only the first row of a run of given rows counts.
    """
    count = tl.full((), 0, tl.int32)
    window = real_of(mine + RAS_WINDOW * plan_stride).to(tl.int32)
    is_guarded = (window > 0) & (is_code | (token == constants.fill_id))
    if is_guarded:
        left = window
        stop = position
        lanes = tl.arange(0, HISTORY)
        while (left > 0) & (stop > audio_start):
            rows = stop - 1 - lanes  # latest first
            tokens = tl.load(history + rows * row_stride, mask=rows >= audio_start, other=constants.given_id)
            is_counted = (tokens != constants.given_id).to(tl.int32)
            is_near = (is_counted > 0) & (tl.cumsum(is_counted, 0) <= left)
            count += tl.sum((is_near & (tokens == token)).to(tl.int32), 0)
            left -= tl.sum(is_counted, 0)
            stop -= HISTORY
    return is_guarded & (count >= real_of(mine + RAS_MAX_REPEATS * plan_stride))
