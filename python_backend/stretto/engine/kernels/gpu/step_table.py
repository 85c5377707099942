"""Columns of the step table (one 32-bit word per row each), and compile-time constants of the step kernels."""

from typing import NamedTuple

import triton.language as tl

COLUMNS = (
    "role",
    "slot",
    "other",
    "other_slot",
    "samples",
    "task",
    "text_min",
    "text_max",
    "audio_min",
    "audio_max",
    "text_top_k",
    "audio_top_k",
    "depth_top_k",
    "seed_key",
    "ras_window",
    "ras_max_repeats",
    "forced_until",
    "latent_steps",
    "tail_rows",
    "text_temperature",
    "text_top_p",
    "audio_temperature",
    "audio_top_p",
    "depth_temperature",
    "depth_top_p",
    "script_temperature",
    "guidance",
    "repetition_penalty",
    "audio_span",
)
# Roles of a row: inactive, sampled, or a copy of another row's sample.
IDLE, DRAWS, RECEIVES = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
# Columns of a reply's state (`worker/slots.py`).
STATE = ("audio_start", "audio_end", "num_text_tokens", "num_entries", "pointer", "first_end")


def _at(name: str) -> tl.constexpr:
    return tl.constexpr(COLUMNS.index(name))


def _state_at(name: str) -> tl.constexpr:
    return tl.constexpr(STATE.index(name))


ROLE, SLOT, OTHER, OTHER_SLOT, SAMPLES, TASK = map(_at, COLUMNS[:6])
TEXT_MIN, TEXT_MAX, AUDIO_MIN, AUDIO_MAX, TEXT_TOP_K, AUDIO_TOP_K, DEPTH_TOP_K = map(_at, COLUMNS[6:13])
SEED_KEY, RAS_WINDOW, RAS_MAX_REPEATS, FORCED_UNTIL = map(_at, COLUMNS[13:17])
TEXT_TEMPERATURE, TEXT_TOP_P, AUDIO_TEMPERATURE, AUDIO_TOP_P, DEPTH_TEMPERATURE, DEPTH_TOP_P = map(_at, COLUMNS[19:25])
SCRIPT_TEMPERATURE, GUIDANCE, REPETITION_PENALTY, AUDIO_SPAN = map(_at, COLUMNS[25:])
AUDIO_START, AUDIO_END, NUM_TEXT_TOKENS, NUM_ENTRIES, POINTER, FIRST_END = map(_state_at, STATE)


# Kinds of tail (`streams/pattern.py`).
FORCED_TAIL, SAMPLED_TAIL, PADDED_TAIL, NO_TAIL = (tl.constexpr(kind) for kind in range(4))


class StepRules(NamedTuple):
    """Rules of the family's replies (`SegmentRules`) and sizes of the tables.

    Attributes:
        num_rows: N, the maximum number of rows in a step.
        num_others: S - 1, the number of streams without stream 0.
        num_drawn: Number of those that are sampled; they come first.
        num_ids: Number of columns of the tables from `end_tables`; the last is for all other ids.
        num_end_frame: Number of ids in the frame that ends the audio; 0 for none.
        max_entries: Maximum number of alignment-pointer entries; 0 without a pointer.
        index_lane: Index of the pointer's index stream among streams 1 to S - 1.
        first_start: First id of stream 0 that is replaced by `null_id` for unconditional requests.
        first_stop: Id after the last such id.
        num_seen_columns: Number of columns of the repetition penalty's table; 0 without a penalty.
        first_seen_id: Id of its first column.
        track_start: Index among streams 1 to S - 1 of the first input-only stream whose ids are in the table already.
        track_stop: Index after the last one; equal to `track_start` without any.
        has_staircase: True if each stream has its own BOS and EOS ids.
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
    num_seen_columns: int
    first_seen_id: int
    track_start: int
    track_stop: int
    has_staircase: bool
