"""Triton kernel that writes the begin and end ids of the streams, after all streams are sampled."""

from typing import NamedTuple

import triton
import triton.language as tl

from stretto.engine.kernels.gpu.device_rules import RULES, device_rules
from stretto.engine.kernels.gpu.step_draw import AUDIO_END, AUDIO_START, DRAWS, ROLE, SLOT
from stretto.engine.rules import STATE
from stretto_higgs_audio.higgs_audio.mechanism import rules as stair_rules

OWN = device_rules(stair_rules.__name__)
FIRST_EOS = tl.constexpr(len(STATE))  # the column of `Staircase.state`


class StairRules(NamedTuple):
    """Compile-time constants of `stairs_kernel`. `num_others` is the number of streams except stream 0."""

    num_rows: int
    num_others: int
    state_stride: int


@triton.jit
def stairs_kernel(
    first: tl.tensor,  # stream 0, [N] int32, written
    drawn: tl.tensor,  # the other streams, [N, K] int32, written
    ids: tl.tensor,  # [3, K + 1] int64: begin ids, end ids, delays
    state: tl.tensor,  # [R, 5 + C] int64, written
    plan: tl.tensor,  # `step_draw.py`, [C, N] int32
    lengths: tl.tensor,  # [N] int32
    rules: tl.constexpr,
    block: tl.constexpr,  # at least K
) -> None:
    row = tl.program_id(0)
    lanes = tl.arange(0, block)
    mine = plan + row
    inside = lanes < rules.num_others
    if tl.load(mine + ROLE * rules.num_rows) != DRAWS:
        return
    slot = tl.load(mine + SLOT * rules.num_rows).to(tl.int64)
    position = tl.load(lengths + row).to(tl.int64)
    at = state + slot * rules.state_stride
    audio_start = tl.load(at + AUDIO_START)
    _, _, in_audio = RULES.segment_flags(position, audio_start, tl.load(at + AUDIO_END))
    num_ids: tl.constexpr = rules.num_others + 1
    begins = tl.load(ids + 1 + lanes, mask=inside, other=0)
    ends = tl.load(ids + num_ids + 1 + lanes, mask=inside, other=0)
    delays = tl.load(ids + 2 * num_ids + 1 + lanes, mask=inside, other=0)
    first_end = tl.load(at + FIRST_EOS)
    first_eos = tl.load(ids + num_ids)
    num_ended = OWN.num_ended(position, first_end)
    drawn_in_row = drawn + row * rules.num_others + lanes
    codes = tl.load(drawn_in_row, mask=inside, other=0).to(tl.int64)
    codes = OWN.stair_id(codes, position - audio_start, delays, begins, lanes + 1, num_ended, ends)
    tl.store(drawn_in_row, codes.to(tl.int32), mask=inside)
    token = OWN.ended_id(tl.load(first + row).to(tl.int64), 0, num_ended, first_eos)
    tl.store(first + row, token.to(tl.int32))
    is_end = (token == first_eos) | (tl.sum((inside & (codes == ends)).to(tl.int32), 0) > 0)
    tl.store(at + FIRST_EOS, OWN.follow_end(in_audio & is_end, position, first_end))
