"""Triton kernels that gather the rows of a step, write the sampled rows, and advance the replies' state."""

from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from stretto.engine.kernels.gpu.device_rules import RULES
from stretto.engine.kernels.gpu.draw import attempt_key_of
from stretto.engine.kernels.gpu.step_draw import (
    AUDIO_END,
    AUDIO_MAX,
    AUDIO_MIN,
    AUDIO_START,
    DRAWS,
    FIRST_END,
    FIRST_REDRAW,
    FORCED_UNTIL,
    NUM_CODES,
    NUM_TEXT_TOKENS,
    OTHER,
    OTHER_SLOT,
    RECEIVES,
    REQUEST_KEY,
    ROLE,
    SAMPLES,
    SEED_KEY,
    SLOT,
    TAIL_ROWS,
    TASK,
    TEXT_MAX,
)


@triton.jit
def ends_audio_of(audio: tl.tensor, ends_of_audio: tl.tensor, rules: tl.constexpr) -> tl.tensor:
    """Return True if the sampled id `audio` ends the audio."""
    is_end = audio != audio
    num_ends: tl.constexpr = rules.num_ends
    for end in tl.static_range(num_ends):
        is_end = is_end | (audio == tl.load(ends_of_audio + end))
    return is_end


@triton.jit
def is_end_frame_of(
    token: tl.tensor, drawn: tl.tensor, lanes: tl.tensor, end_frame: tl.tensor, rules: tl.constexpr
) -> tl.tensor:
    """Return True if stream 0 and the codes in `drawn` are the end frame."""
    inside = lanes < rules.num_end_frame - 1
    codes = tl.load(drawn + lanes, mask=inside, other=0)
    ends = tl.load(end_frame + 1 + lanes, mask=inside, other=0)
    num_others = tl.sum((codes != ends).to(tl.int32), 0)
    return (token == tl.load(end_frame)) & (num_others == 0)


@triton.jit
def keep_kernel(
    tokens: tl.tensor,  # [R, T] int32, written
    results: tl.tensor,  # [N] int32, stream 0 of each row first
    plan: tl.tensor,  # `step_draw.py`, [C, N] int32
    lengths: tl.tensor,  # [N] int32
    tokens_stride: tl.constexpr,
    plan_stride: tl.constexpr,
) -> None:
    """Write stream 0 of the sampled rows to vLLM's token table, because later rows of this step read it."""
    row = tl.program_id(0)
    if tl.load(plan + SAMPLES * plan_stride + row) != 0:
        slot = tl.load(plan + SLOT * plan_stride + row).to(tl.int64)
        tl.store(tokens + slot * tokens_stride + tl.load(lengths + row), tl.load(results + row))


def gather_rows(
    rows: torch.Tensor,
    ids: Any,
    slots: Any,
    positions: Any,
    codes: torch.Tensor,
    pad_id: int,
    texts: torch.Tensor | None = None,
) -> None:
    """Gather the rows of a step for all streams; on a GPU in one launch, one program per row.

    Args:
        rows: Output, int32 [P, S]; rows after the first N are filled with pads.
        ids, slots, positions: Stream 0, run slot and position of each row, [N]; numpy arrays if the tables are in host
            memory, otherwise tensors.
        codes: The other streams by slot and position, int32 [R, T, S - 1].
        texts: Ids to which negative entries of `codes` refer, int32 [R, G] (`SlotTables.texts`); None for none.
    """
    num_rows = len(ids)
    num_streams = rows.shape[1]
    if isinstance(slots, np.ndarray):
        host = rows.numpy()
        host[:num_rows, 0] = ids
        host[:num_rows, 1:] = codes.numpy()[slots, positions]
        if texts is not None:
            row, stream = np.nonzero(host[:num_rows] < 0)
            host[row, stream] = texts.numpy()[slots[row], -1 - host[row, stream]]
        host[num_rows:] = pad_id
        return
    _gather_kernel[len(rows),](
        rows, ids, slots, positions, codes, texts, num_rows, codes.stride(0), 0 if texts is None else texts.stride(0),
        pad_id, num_streams, triton.next_power_of_2(num_streams), num_warps=1,
    )  # fmt: skip


# Avoid specialisation, so that one binary works for batches of any size.
@triton.jit(do_not_specialize=["num_rows"])
def _gather_kernel(
    rows: tl.tensor,  # [P, S] int32, written
    ids: tl.tensor,  # [N] int32
    slots: tl.tensor,  # [N] int64
    positions: tl.tensor,  # [N] int64
    codes: tl.tensor,  # [R, T, S - 1] int32
    texts: tl.tensor,  # [R, G] int32, or None
    num_rows: tl.tensor,
    codes_stride: tl.constexpr,
    texts_stride: tl.constexpr,
    pad_id: tl.constexpr,
    num_streams: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    streams = tl.arange(0, block)
    inside = streams < num_streams
    values = tl.full((block,), pad_id, tl.int32)
    if row < num_rows:
        offset = tl.load(slots + row).to(tl.int64) * codes_stride + tl.load(positions + row) * (num_streams - 1)
        is_code = inside & (streams > 0)
        values = tl.load(codes + offset + streams - 1, mask=is_code, other=0)
        if texts is not None:
            is_given = is_code & (values < 0)
            words = texts + tl.load(slots + row).to(tl.int64) * texts_stride - 1 - values
            values = tl.load(words, mask=is_given, other=0) + tl.where(is_given, 0, values)
        values = tl.where(streams == 0, tl.load(ids + row).to(tl.int32), values)
    tl.store(rows + row.to(tl.int64) * num_streams + streams, values, mask=inside)


@triton.jit
def attempt_keys_kernel(
    plan: tl.tensor,  # `step_draw.py`, [C, N] int32; the column SEED_KEY is written
    lengths: tl.tensor,  # [N] int32
    state: tl.tensor,  # [R, 5 + C] int64
    num_redraws: tl.constexpr,
    rules: tl.constexpr,
) -> None:
    """Write each row's noise key, which differs from the request's if the row is sampled again."""
    family: tl.constexpr = rules.family
    row = tl.program_id(0)
    mine = plan + row
    if tl.load(mine + ROLE * rules.num_rows) == DRAWS:
        at = state + tl.load(mine + SLOT * rules.num_rows).to(tl.int64) * rules.state_stride
        before = RULES.num_audio_rows(
            tl.load(lengths + row), tl.load(at + AUDIO_START), tl.load(at + NUM_CODES), family
        )
        number = row * 0
        for redraw in range(num_redraws):
            number += (tl.load(mine + (FIRST_REDRAW + redraw) * rules.num_rows) <= before).to(tl.int32)
        key = tl.load(mine + REQUEST_KEY * rules.num_rows).to(tl.uint32, bitcast=True)
        tl.store(mine + SEED_KEY * rules.num_rows, attempt_key_of(key, number).to(tl.int32, bitcast=True))


@triton.jit
def _closing(
    token: tl.tensor, ends: tl.tensor, task: tl.tensor, rules: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Return the id to write for a sampled `token` that ends the text, and the number of rows until the audio."""
    at = ends + task * rules.num_ids + tl.minimum(tl.maximum(token, 0), rules.num_ids - 1)
    return tl.load(at), tl.load(at + rules.num_tasks * rules.num_ids)


@triton.jit
def _other_streams(
    drawn: tl.tensor, forced: tl.tensor, lanes: tl.tensor, streams: tl.tensor, frame: tl.tensor, lag: tl.tensor,
    is_spoken: tl.tensor, is_forced: tl.tensor, rules: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return streams 1 to S - 1: sampled ids, pads, or (if `is_forced`) ids of the prompt's audio."""
    family: tl.constexpr = rules.family
    is_drawn = lanes < rules.num_drawn
    delays = tl.load(streams + lanes, mask=lanes < rules.num_others, other=0)
    begun = frame >= delays
    last_kept = tl.load(streams + 3 * rules.num_others + lanes, mask=is_drawn, other=0)
    lies = RULES.keeps_sampled(is_drawn & is_spoken, begun, lag, last_kept, family)
    laid = tl.where(lies, tl.load(drawn + lanes, mask=lies != 0, other=0), family.pad_id)
    goes_on = is_drawn & (begun == 0) & is_forced
    return tl.where(goes_on, tl.load(forced, mask=goes_on != 0, other=0), laid)


@triton.jit
def _write(
    results: tl.tensor, row: tl.tensor, token: tl.tensor, laid: tl.tensor, is_cut: tl.tensor, samples: tl.tensor,
    lanes: tl.tensor, rules: tl.constexpr,
) -> None:  # fmt: skip
    """Write a row and its flags to `results`; `laid` has streams 1 to S - 1, followed by the state columns."""
    width: tl.constexpr = rules.num_others + rules.num_sent
    tl.store(results + row, token.to(tl.int32))
    tl.store(results + rules.num_rows + row * width + lanes, laid.to(tl.int32), mask=lanes < width)
    tl.store(results + rules.num_rows * (1 + width) + row, is_cut.to(tl.int32))
    tl.store(results + rules.num_rows * (2 + width) + row, samples)


@triton.jit
def _share(
    results: tl.tensor, codes: tl.tensor, token: tl.tensor, laid: tl.tensor, lengths: tl.tensor, mine: tl.tensor,
    streams: tl.tensor, frame: tl.tensor, lanes: tl.tensor, rules: tl.constexpr,
) -> None:  # fmt: skip
    """Write the row for the unconditional request, in which hidden streams are masked."""
    family: tl.constexpr = rules.family
    other = tl.load(mine + OTHER * rules.num_rows)
    position = tl.load(lengths + other).to(tl.int64)
    slot = tl.load(mine + OTHER_SLOT * rules.num_rows).to(tl.int64)
    token = RULES.hide_first(token, family)
    inside = lanes < rules.num_others
    delay = tl.load(streams + lanes, mask=inside, other=0)
    is_hidden = tl.load(streams + rules.num_others + lanes, mask=inside, other=0) != 0
    initial = tl.load(streams + 2 * rules.num_others + lanes, mask=inside, other=0)
    laid = RULES.hide_other(laid, is_hidden, frame, delay, initial, family)
    tl.store(codes + slot * rules.codes_stride + position * rules.num_others + lanes, laid, mask=inside)
    _write(results, other, token, tl.where(inside, laid, 0), other * 0, other * 0 + 1, lanes, rules)


@triton.jit
def text_is_full(at: tl.tensor, position: tl.tensor, constants: tl.constexpr) -> tl.tensor:
    """Return True if a mechanism ends a text with its next row; this default never does."""
    return position < 0


@triton.jit
def finish_row(
    laid: tl.tensor, lanes: tl.tensor, token: tl.tensor, in_text: tl.tensor, in_audio: tl.tensor, at: tl.tensor,
    entries: tl.tensor, constants: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return streams 1 to S - 1 of a row, and update the family's state and entries; this default changes nothing.

    Args:
        at: State of the reply before the row.
        entries: Entries of the slot (`SlotTables.texts`).
    """
    return laid


class RowFunctions(NamedTuple):
    """Triton functions that `advance_kernel` calls in each row.

    The program of a family may replace them (`ROW_FUNCTIONS._replace`). Arguments and results are those of the
    functions above.
    """

    text_is_full: Any
    finish_row: Any


ROW_FUNCTIONS = RowFunctions(text_is_full, finish_row)


@triton.jit
def _write_state(
    at: tl.tensor, token: tl.tensor, position: tl.tensor, ends_audio: tl.tensor, task: tl.tensor, tasks: tl.tensor,
    ends: tl.tensor, rules: tl.constexpr,
) -> None:  # fmt: skip
    """Update the reply's state for a row with `token` on stream 0."""
    family: tl.constexpr = rules.family
    audio_start = tl.load(at + AUDIO_START)
    _, rows_to_audio = _closing(token, ends, task, rules)
    has_audio = tl.load(tasks + 2 * rules.num_tasks + task) != 0
    in_text = audio_start < 0
    audio_start, num_text_tokens = RULES.follow_text(
        in_text, rows_to_audio, has_audio, position, audio_start, tl.load(at + NUM_TEXT_TOKENS)
    )
    tl.store(at + AUDIO_START, audio_start)
    tl.store(at + AUDIO_END, tl.where(ends_audio, position, tl.load(at + AUDIO_END)))
    tl.store(at + NUM_TEXT_TOKENS, num_text_tokens)
    if family.interleaves:
        tl.store(at + NUM_CODES, RULES.count_codes(token, in_text, tl.load(at + NUM_CODES), family))


@triton.jit
def advance_kernel(
    results: tl.tensor,  # int32 blocks, written: tokens [N], codes and state [N, S - 1 + C], cut flags [N], samples [N]
    state: tl.tensor,  # [R, 5 + C] int64, written
    texts: tl.tensor,  # [R, G] int32, written by a family's sampler
    codes: tl.tensor,  # [R, T + 1, S - 1] int32, written
    seen: tl.tensor,  # [R, V + 1] uint8, written: ids counted by a repetition penalty; or empty
    plan: tl.tensor,  # `step_draw.py`, [C, N] int32
    lengths: tl.tensor,  # [N] int32
    text: tl.tensor,  # sampled text ids, [N] int32
    first: tl.tensor,  # stream 0 of audio rows, [N] int32
    drawn: tl.tensor,  # [N, K] int32
    tasks: tl.tensor,  # [3, tasks] int64: id written for a cut; text limit; 1 if the task has audio
    ends: tl.tensor,  # [2, tasks, ids] int64, `end_tables`
    ends_of_audio: tl.tensor,  # [E] int64
    end_frame: tl.tensor,  # [F] int64, stream 0 first
    transition: tl.tensor,  # [n + 1] int64
    streams: tl.tensor,  # [4, S - 1] int64: `SegmentRules.other_streams`
    sent: tl.tensor,  # [C] int64: columns of `state` that are sent to the host
    rules: tl.constexpr,
    constants: tl.constexpr,  # constants of the family (`StepProgram.rule_constants`)
    # The `RowFunctions`.
    text_is_full: tl.constexpr,
    finish_row: tl.constexpr,
    block: tl.constexpr,  # at least S - 1 + C
) -> None:
    row = tl.program_id(0)
    mine = plan + row
    lanes = tl.arange(0, block)
    role = tl.load(mine + ROLE * rules.num_rows)
    if role == RECEIVES:
        return
    if role != DRAWS:
        samples = tl.load(mine + SAMPLES * rules.num_rows)
        _write(results, row, row * 0, lanes * 0, row * 0, samples, lanes, rules)
        return
    slot = tl.load(mine + SLOT * rules.num_rows).to(tl.int64)
    position = tl.load(lengths + row).to(tl.int64)
    token, laid, is_cut = _row(
        slot, position, row, mine, lanes, rules,
        state=state, texts=texts, codes=codes, text=text, first=first, drawn=drawn,
        tasks=tasks, ends=ends, ends_of_audio=ends_of_audio, end_frame=end_frame, transition=transition,
        streams=streams, constants=constants, text_is_full=text_is_full, finish_row=finish_row,
    )  # fmt: skip
    tl.store(
        codes + slot * rules.codes_stride + position * rules.num_others + lanes, laid, mask=lanes < rules.num_others
    )
    is_sent = (lanes >= rules.num_others) & (lanes < rules.num_others + rules.num_sent)
    column = tl.load(sent + lanes - rules.num_others, mask=is_sent, other=0)
    tl.debug_barrier()  # the state was written by another lane
    after = tl.load(state + slot * rules.state_stride + column, mask=is_sent, other=0)
    _write(results, row, token, tl.where(is_sent, after.to(tl.int32), laid), is_cut, row * 0 + 1, lanes, rules)
    if rules.num_seen_columns > 0:
        column = token - rules.first_seen_id
        num_counted = rules.num_seen_columns - 1
        column = tl.where((column >= 0) & (column < num_counted), column, num_counted)
        tl.store(seen + slot * rules.num_seen_columns + column, 1)
    if tl.load(mine + OTHER * rules.num_rows) != row:
        frame = position - tl.load(state + slot * rules.state_stride + AUDIO_START)
        _share(results, codes, token, laid, lengths, mine, streams, frame, lanes, rules)


@triton.jit
def _row(
    slot: tl.tensor, position: tl.tensor, row: tl.tensor, mine: tl.tensor, lanes: tl.tensor, rules: tl.constexpr,
    state: tl.tensor, texts: tl.tensor, codes: tl.tensor, text: tl.tensor, first: tl.tensor, drawn: tl.tensor,
    tasks: tl.tensor, ends: tl.tensor, ends_of_audio: tl.tensor, end_frame: tl.tensor, transition: tl.tensor,
    streams: tl.tensor, constants: tl.constexpr, text_is_full: tl.constexpr, finish_row: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Return a row's ids on stream 0 and the other streams, and True if a limit ends a segment; update the state."""
    family: tl.constexpr = rules.family
    task = tl.load(mine + TASK * rules.num_rows)
    drawn_in_row = drawn + row * rules.num_drawn
    at = state + slot * rules.state_stride
    audio_start = tl.load(at + AUDIO_START)
    audio_end = tl.load(at + AUDIO_END)
    in_text, is_spoken, in_audio = RULES.segment_flags(position, audio_start, audio_end)
    frame = position - audio_start
    text_token = tl.load(text + row).to(tl.int64)
    end_id, _ = _closing(text_token, ends, task, rules)
    text_token, text_is_cut = RULES.end_text(
        text_token, end_id, tl.load(tasks + task), tl.load(at + NUM_TEXT_TOKENS),
        tl.load(mine + TEXT_MAX * rules.num_rows), position, tl.load(tasks + rules.num_tasks + task),
        text_is_full(at, position, constants),
    )  # fmt: skip
    audio_token = tl.load(first + row).to(tl.int64)
    audio_max = tl.load(mine + AUDIO_MAX * rules.num_rows)
    is_end = ends_audio_of(audio_token, ends_of_audio, rules)
    audio_token, audio_is_cut = RULES.end_audio(audio_token, is_end, frame, audio_max, position, in_audio, family)
    if family.last_frame >= 0:
        audio_token, first_end, audio_is_cut = RULES.count_down(
            audio_token, audio_is_cut, in_audio, position, tl.load(at + FIRST_END),
            tl.load(mine + TAIL_ROWS * rules.num_rows), family,
        )  # fmt: skip
        tl.store(at + FIRST_END, first_end)
    if rules.num_end_frame > 0:
        may_end = frame >= tl.load(mine + AUDIO_MIN * rules.num_rows)
        is_end_frame = is_end_frame_of(audio_token, drawn_in_row, lanes, end_frame, rules)
        audio_token = RULES.end_at_frame(audio_token, is_end_frame, in_audio, may_end, family)
    since_end = RULES.rows_after_audio(position, audio_start, audio_end, audio_max, family)
    step = tl.minimum(tl.maximum(frame + rules.num_transition, 0), rules.num_transition)
    forced = tl.load(transition + step)
    token = RULES.first_stream(audio_token, position, audio_start, audio_end, since_end, forced, family)
    token = tl.where(in_text, text_token, token)
    ends_audio = in_audio & (token == family.end_of_audio)
    lag = RULES.rows_after_last(since_end, audio_end, ends_audio)
    is_forced = position < tl.load(mine + FORCED_UNTIL * rules.num_rows)
    in_history = codes + slot * rules.codes_stride + position * rules.num_others + lanes
    laid = _other_streams(drawn_in_row, in_history, lanes, streams, frame, lag, is_spoken, is_forced, rules)
    if rules.track_stop > rules.track_start:
        is_known = (lanes >= rules.track_start) & (lanes < rules.track_stop)
        laid = tl.where(is_known, tl.load(in_history, mask=is_known, other=0), laid)
    laid = finish_row(laid, lanes, token, in_text, in_audio, at, texts + slot * rules.texts_stride, constants)
    _write_state(at, token, position, ends_audio, task, tasks, ends, rules)
    return token, laid, (text_is_cut & in_text) | audio_is_cut
