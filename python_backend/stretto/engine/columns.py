"""Columns of the slot tables: state and parameters of replies, in the order in which the tables and kernels have them.

Each class has one attribute per column, with the values of B rows, a numpy array or a torch tensor [B].
"""

from dataclasses import dataclass, fields
from typing import Any

Array = Any  # np.ndarray or torch.Tensor


@dataclass
class SlotState:
    """State of replies, int64 [B] each, updated on the device in every step; see `ReplyState`."""

    audio_start: Array
    audio_end: Array
    num_text_tokens: Array
    num_codes: Array
    first_end: Array


@dataclass
class SlotLimits:
    """Integer parameters of requests, int64 [B] each.

    Attributes:
        forced_until: Position up to which delayed streams continue audio in the prompt; 0 for none.
        latent_steps: Number of solver steps of a latent; 0 for families without latents.
        tail_rows: Number of rows from the detected end of speech to the end of the audio; 0 for families without
            latents.
        track_total: Number of words, or of other parts of the text, that a mechanism's track has; ENDLESS while the
            text is open.
    """

    task: Array
    text_min: Array
    text_max: Array
    audio_min: Array
    audio_max: Array
    text_top_k: Array
    audio_top_k: Array
    depth_top_k: Array
    seed_key: Array
    ras_window: Array
    ras_max_repeats: Array
    forced_until: Array
    latent_steps: Array
    tail_rows: Array
    track_total: Array


@dataclass
class SlotScales:
    """Floating-point parameters of requests, float32 [B] each; names as in `SamplingConfig`.

    Attributes:
        depth_temperature: Temperature of streams 1 to S - 1 in audio rows, also without a depth transformer.
        depth_top_p: Top-p of these streams.
        script_temperature: Temperature of the alignment pointer, for families that have one.
        guidance: Guidance scale of a CFG pair, or of guidance within the latent predictor; 1 for none.
        audio_span: In audio rows, maximum gap between a stream-0 logit and the largest one (min-p); infinite if unused.
    """

    text_temperature: Array
    text_top_p: Array
    audio_temperature: Array
    audio_top_p: Array
    depth_temperature: Array
    depth_top_p: Array
    script_temperature: Array
    guidance: Array
    repetition_penalty: Array
    audio_span: Array


def _index(table: type) -> dict[str, int]:
    """Return the index of each column, keyed by name."""
    return {column.name: index for index, column in enumerate(fields(table))}


STATE = _index(SlotState)
LIMITS = _index(SlotLimits)
SCALES = _index(SlotScales)
