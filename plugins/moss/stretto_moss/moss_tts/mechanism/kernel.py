"""Triton kernel that writes delay slots and pads, after all streams are sampled."""

from typing import NamedTuple

import triton
import triton.language as tl

from stretto.engine.kernels.gpu.device_rules import RULES, device_rules
from stretto.engine.kernels.gpu.step_draw import AUDIO_END, AUDIO_MIN, AUDIO_START, DRAWS, ROLE, SLOT
from stretto.engine.rules import STATE
from stretto_moss.moss_tts.mechanism import rules as slot_rules

OWN = device_rules(slot_rules.__name__)
DELAY_START = tl.constexpr(len(STATE))  # the column of `DelaySlots.state`


class SlotRules(NamedTuple):
    """Compile-time constants of `slots_kernel`. The ids are those of the text stream."""

    num_rows: int
    num_codebooks: int
    state_stride: int
    slot: int
    delay: int
    end: int


@triton.jit
def slots_kernel(
    first: tl.tensor,  # the text stream, [N] int32, written
    drawn: tl.tensor,  # codes, [N, K] int32, written
    pads: tl.tensor,  # [K] int64
    state: tl.tensor,  # [R, 5 + C] int64, written
    plan: tl.tensor,  # `step_draw.py`, [C, N] int32
    lengths: tl.tensor,  # [N] int32
    rules: tl.constexpr,
    block: tl.constexpr,  # at least K
) -> None:
    row = tl.program_id(0)
    lanes = tl.arange(0, block)
    mine = plan + row
    inside = lanes < rules.num_codebooks
    if tl.load(mine + ROLE * rules.num_rows) != DRAWS:
        return
    slot = tl.load(mine + SLOT * rules.num_rows).to(tl.int64)
    position = tl.load(lengths + row).to(tl.int64)
    at = state + slot * rules.state_stride
    audio_start = tl.load(at + AUDIO_START)
    _, _, in_audio = RULES.segment_flags(position, audio_start, tl.load(at + AUDIO_END))
    frame = position - audio_start
    delay_start = tl.load(at + DELAY_START)
    since = OWN.rows_since(position, delay_start)
    token = OWN.slot_token(
        tl.load(first + row).to(tl.int64), frame, tl.load(mine + AUDIO_MIN * rules.num_rows), since,
        rules.num_codebooks, rules.slot, rules.delay, rules.end,
    )  # fmt: skip
    tl.store(first + row, token.to(tl.int32))
    drawn_in_row = drawn + row * rules.num_codebooks + lanes
    codes = tl.load(drawn_in_row, mask=inside, other=0).to(tl.int64)
    codes = OWN.slot_code(codes, frame, since, lanes, tl.load(pads + lanes, mask=inside, other=0))
    tl.store(drawn_in_row, codes.to(tl.int32), mask=inside)
    tl.store(at + DELAY_START, OWN.follow_delay(in_audio & (token == rules.delay), position, delay_start))
