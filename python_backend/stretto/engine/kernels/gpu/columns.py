"""Columns of the step table, [C, N] of 32-bit words, which describes each row of a batch to the kernels.

role: action of the row. slot: run slot of its reply. other, other_slot: row and slot of the pair's unconditional
request, or its own. samples: 1 if vLLM counts a token. The remaining columns are the request parameters
(`worker/slots.py`), real numbers as their bits.
"""

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
# Roles: inactive, drawing, and receiving the draw of another row.
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
TEXT_TEMPERATURE, TEXT_TOP_P, AUDIO_TEMPERATURE, AUDIO_TOP_P, DEPTH_TEMPERATURE, DEPTH_TOP_P = map(_at, COLUMNS[17:23])
SCRIPT_TEMPERATURE, GUIDANCE, REPETITION_PENALTY, AUDIO_SPAN = map(_at, COLUMNS[23:])
AUDIO_START, AUDIO_END, NUM_TEXT_TOKENS, NUM_ENTRIES, POINTER, FIRST_END = map(_state_at, STATE)
