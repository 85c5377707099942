"""What is fixed for all steps of an engine, as the kernels are compiled for it."""

from typing import NamedTuple

import triton.language as tl

# How a tail goes on (`streams/pattern.py`).
FORCED_TAIL, SAMPLED_TAIL, PADDED_TAIL, NO_TAIL = (tl.constexpr(kind) for kind in range(4))


class StepRules(NamedTuple):
    """A family's rules (`request/rules.py`), and the sizes of the tables.

    num_rows: N, that the step's tables have room for. num_others: S - 1, the streams beside stream 0, of which the
    first num_drawn are drawn. num_end_frame: ids with which the frame begins that ends the audio, 0 where none does.
    num_ids: ids of the tables of ends, the last for all that close nothing. max_entries: of
    a script, 0 where the family has none; index_lane: its index stream among the others. first_start, first_stop: what
    stands for null_id in the other half's row, where the family hides it. num_said: columns of the table of what a
    repetition penalty counts, 0 where the family has none; said_start: the id of the first. track_lane: of a text track
    among the others, which keeps what its place holds; -1 where the family has none. has_staircase: whether streams
    begin and end by ids of their own.
    """

    num_rows: int
    num_others: int
    num_drawn: int
    num_tasks: int
    num_ids: int
    num_ends: int
    num_end_frame: int
    num_transition: int
    state_stride: int
    script_stride: int
    codes_stride: int
    pad_id: int
    end_of_audio: int
    end_of_reply: int
    num_tail_rows: int
    audio_limit: int
    tail: int
    warm_up_is_sampled: bool
    hides_first: bool
    first_start: int
    first_stop: int
    null_id: int
    max_entries: int
    spoken_start: int
    spoken_stop: int
    first_frame: int
    index_base: int
    index_lane: int
    num_said: int
    said_start: int
    track_lane: int
    has_staircase: bool
