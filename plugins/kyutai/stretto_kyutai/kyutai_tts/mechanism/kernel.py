"""Triton kernel that advances the words of replies, after stream 0 and before the codes are sampled."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from stretto.engine.kernels.gpu.device_rules import RULES, device_rules
from stretto.engine.kernels.gpu.step_draw import AUDIO_END, AUDIO_START, DRAWS, OTHER, ROLE, SLOT, TRACK_TOTAL
from stretto.engine.rules import STATE
from stretto_kyutai.kyutai_tts.mechanism import rules as word_rules
from stretto_kyutai.kyutai_tts.mechanism.script import NUM_FIELDS as FIELDS

OWN = device_rules(word_rules.__name__)


class WordRules(NamedTuple):
    """Compile-time constants of `words_kernel`.

    Attributes:
        capacity: Maximum number of tokens in a slot's table; the words are stored after the tokens.
        lane: Index of the second stream among streams 1 to S - 1.
        nothing: Id of an empty second stream.
    """

    script: Any
    num_rows: int
    capacity: int
    lane: int
    nothing: int
    end_of_audio: int
    state_stride: int
    words_stride: int
    codes_stride: int
    num_others: int


# Columns of the state among those of the words (`WordScript.columns`).
REMAINING, FORCED, MAIN_AT, MAIN_END, SECOND_AT, SECOND_END, TAKEN, END = (tl.constexpr(at) for at in range(8))
FIRST_COLUMN = tl.constexpr(len(STATE))
NUM_FIELDS = tl.constexpr(FIELDS)


@triton.jit
def words_kernel(
    drawn: tl.tensor,  # [N] int32: sampled ids of stream 0; written: the ids that the rows carry
    seconds: tl.tensor,  # [N] int32, written: ids of the second stream; None if nothing reads them
    words: tl.tensor,  # [R, W] int32: tokens, then words
    codes: tl.tensor,  # [R, T + 1, S - 1] int32, written: the second stream
    state: tl.tensor,  # [R, 5 + C] int64, written: the state of the words
    plan: tl.tensor,  # `step_draw.py`, [C, N] int32
    lengths: tl.tensor,  # [N] int32
    rules: tl.constexpr,
) -> None:
    script: tl.constexpr = rules.script
    row = tl.program_id(0)
    mine = plan + row
    if tl.load(mine + ROLE * rules.num_rows) != DRAWS:
        return
    slot = tl.load(mine + SLOT * rules.num_rows).to(tl.int64)
    position = tl.load(lengths + row).to(tl.int64)
    slot_state = state + slot * rules.state_stride
    table = words + slot * rules.words_stride
    at = slot_state + FIRST_COLUMN
    _, _, in_audio = RULES.segment_flags(position, tl.load(slot_state + AUDIO_START), tl.load(slot_state + AUDIO_END))
    if in_audio == 0:
        return
    remaining = tl.load(at + REMAINING)
    forced = tl.load(at + FORCED)
    main_at = tl.load(at + MAIN_AT)
    main_end = tl.load(at + MAIN_END)
    second_at = tl.load(at + SECOND_AT)
    second_end = tl.load(at + SECOND_END)
    taken = tl.load(at + TAKEN)
    end = tl.load(at + END)
    asks, takes = OWN.ask_for_word(
        tl.load(drawn + row), in_audio, remaining, forced, main_at, main_end, taken,
        tl.load(mine + TRACK_TOTAL * rules.num_rows), script,
    )  # fmt: skip
    word = table + rules.capacity + NUM_FIELDS * taken
    word_end = tl.load(word, mask=takes, other=0)
    padding = tl.load(word + 1, mask=takes, other=0)
    ahead_start = tl.load(word + 2, mask=takes, other=0)
    ahead_end = tl.load(word + 3, mask=takes, other=0)
    remaining, forced, main_end, second_at, second_end, taken, end, marks = OWN.take_word(
        asks, takes, word_end, padding, ahead_start, ahead_end, position, remaining, forced, main_end, second_at,
        second_end, taken, end, script,
    )  # fmt: skip
    main_token = tl.load(table + main_at, mask=main_at < main_end, other=0)
    next_token = main_token
    second_token = main_token
    if script.ahead > 0:
        next_token = tl.load(table + main_at + 1, mask=main_at + 1 < main_end, other=0)
        second_token = tl.load(table + second_at, mask=second_at < second_end, other=0)
    main, second, main_at, second_at = OWN.word_ids(
        asks, marks, main_token, next_token, second_token, main_at, main_end, second_at, second_end, rules.nothing,
        script,
    )  # fmt: skip
    is_over = RULES.is_after_end(in_audio, position, end, script.tail_rows)
    main = tl.where(is_over, rules.end_of_audio, main).to(tl.int32)
    second = second.to(tl.int32)
    other = tl.load(mine + OTHER * rules.num_rows)  # the other request of a pair reads the same ids
    tl.store(drawn + row, main)
    tl.store(drawn + other, main)
    if seconds is not None:
        tl.store(seconds + row, second)
        tl.store(seconds + other, second)
    tl.store(codes + slot * rules.codes_stride + position * rules.num_others + rules.lane, second)
    tl.store(at + REMAINING, remaining)
    tl.store(at + FORCED, forced)
    tl.store(at + MAIN_AT, main_at)
    tl.store(at + MAIN_END, main_end)
    tl.store(at + SECOND_AT, second_at)
    tl.store(at + SECOND_END, second_end)
    tl.store(at + TAKEN, taken)
    tl.store(at + END, end)
