"""Triton kernel that advances the words of a step's replies, after stream 0 and before the codes are sampled."""

from typing import NamedTuple

import triton
import triton.language as tl

from stretto.engine.kernels.gpu.step_draw import AUDIO_END, AUDIO_START, DRAWS, GIVEN_TOTAL, OTHER, ROLE, SLOT


class WordRules(NamedTuple):
    """Compile-time constants of `words_kernel`; the ids are those of `WordScript`.

    Attributes:
        num_rows: Maximum number of rows in a step.
        capacity: Number of tokens for which a slot's table has room; the words are stored after the tokens.
        lane: Index of the second stream among streams 1 to S - 1.
        nothing: Id of an empty second stream.
    """

    num_rows: int
    capacity: int
    lane: int
    nothing: int
    new_id: int
    pad_id: int
    wish_id: int
    ahead: int
    second_base: int
    max_padding: int
    tail_rows: int
    end_of_audio: int
    state_stride: int
    words_stride: int
    word_state_stride: int
    codes_stride: int
    num_others: int


# Columns of the word states (`tracks.WORD_STATE`), and of a word (`tracks.Word`).
REMAINING, FORCED, MAIN_AT, MAIN_END, SECOND_AT, SECOND_END, TAKEN, END = (tl.constexpr(at) for at in range(8))
NUM_FIELDS = tl.constexpr(4)


@triton.jit
def _after_unknown(
    has_main: tl.tensor, marks: tl.tensor, main: tl.tensor, main_at: tl.tensor, main_end: tl.tensor, table: tl.tensor,
    rules: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Return stream 0, the place of the next token, and whether the second stream has `new_id`.

    If the token is `new_id` within a word, an unknown character, the next token or a pad replaces it on stream 0.
    """
    skips = has_main & (marks == 0) & (main == rules.new_id)
    has_next = skips & (main_at < main_end)
    main = tl.where(skips, rules.pad_id, main)
    main = tl.where(has_next, tl.load(table + main_at, mask=has_next, other=0), main)
    return main, main_at + has_next.to(tl.int64), marks | skips


@triton.jit
def words_kernel(
    drawn: tl.tensor,  # [N] int32: sampled ids of stream 0; written: the ids that the rows carry
    seconds: tl.tensor,  # [N] int32, written: ids of the second stream; None if nothing reads them
    word_state: tl.tensor,  # [R, 8] int64, written
    words: tl.tensor,  # [R, W] int32: tokens, then words
    codes: tl.tensor,  # [R, T + 1, S - 1] int32, written: the second stream
    state: tl.tensor,  # [R, 8] int64
    plan: tl.tensor,  # `step_draw.py`, [C, N] int32
    lengths: tl.tensor,  # [N] int32
    rules: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    mine = plan + row
    if tl.load(mine + ROLE * rules.num_rows) != DRAWS:
        return
    slot, position = tl.load(mine + SLOT * rules.num_rows).to(tl.int64), tl.load(lengths + row).to(tl.int64)
    at, table = word_state + slot * rules.word_state_stride, words + slot * rules.words_stride
    own = state + slot * rules.state_stride
    audio_start = tl.load(own + AUDIO_START)
    if (audio_start < 0) | (position < audio_start) | (tl.load(own + AUDIO_END) >= 0):
        return
    remaining, forced = tl.load(at + REMAINING), tl.load(at + FORCED)
    main_at, main_end = tl.load(at + MAIN_AT), tl.load(at + MAIN_END)
    second_at, second_end = tl.load(at + SECOND_AT), tl.load(at + SECOND_END)
    taken, end = tl.load(at + TAKEN), tl.load(at + END)
    is_waiting = (main_at < main_end) | (forced > 0)
    asks = (is_waiting == 0) & ((tl.load(drawn + row) == rules.new_id) | (remaining <= 0))
    takes = asks & (taken < tl.load(mine + GIVEN_TOTAL * rules.num_rows))
    word = table + rules.capacity + NUM_FIELDS * taken
    word_end = tl.load(word, mask=takes, other=0)
    begins = takes & (word_end > main_end)
    forced = tl.where(takes, tl.load(word + 1, mask=takes, other=0), forced)
    taken += takes.to(tl.int64)
    main_end = tl.where(begins, word_end, main_end)
    remaining = tl.where(begins, rules.max_padding, remaining)
    ahead_start, ahead_end = tl.load(word + 2, mask=takes, other=0), tl.load(word + 3, mask=takes, other=0)
    extends = begins & (ahead_end > ahead_start)
    second_at = tl.where(extends & (second_at == second_end), ahead_start, second_at)
    second_end = tl.where(extends, ahead_end, second_end)
    ends = asks & (takes == 0) & (end < 0)
    end = tl.where(ends, position, end)
    marks = begins
    if rules.ahead > 0:
        marks = begins | ends
    remaining = tl.where(marks, remaining, tl.maximum(remaining - 1, 0))
    forced = tl.where(marks, forced, tl.maximum(forced - 1, 0))
    has_main = main_at < main_end
    if rules.ahead == 0:
        has_main = has_main & (marks == 0)  # the first token follows in the next row
    main = tl.where(asks, rules.wish_id, rules.pad_id)
    main = tl.where(has_main, tl.load(table + main_at, mask=has_main, other=0), main)
    main_at += has_main.to(tl.int64)
    second = main * 0 + rules.nothing
    if rules.ahead > 0:
        main, main_at, marks = _after_unknown(has_main, marks, main, main_at, main_end, table, rules)
        has_second = (marks == 0) & (second_at < second_end)
        shown = tl.where(marks, rules.new_id, tl.load(table + second_at, mask=has_second, other=0))
        second = tl.where(marks | has_second, rules.second_base + shown, second)
        second_at += has_second.to(tl.int64)
    else:
        main = tl.where(marks, rules.new_id, main)
    is_over = (end >= 0) & (position - end >= rules.tail_rows)
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
