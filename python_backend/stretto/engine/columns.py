"""Columns of the slot tables: state and parameters of replies, in the order of the tables and kernels.

Each class has one attribute per column, with the values of B rows, a numpy array or a torch tensor [B].
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from stretto.records.sampling import NUMBER_OPTIONS

Array = Any  # np.ndarray or torch.Tensor


@dataclass
class SlotState:
    """State of replies, int64 [B] each, updated on the device in every step (see `ReplyState`)."""

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
        track_total: Number of words, or of other parts of the text, that a family's own track has; ENDLESS while the
            text is open.
        redraw_1, redraw_2, redraw_3, redraw_4: Numbers of audio rows after which sampling uses new noise, in ascending
            order (`SegmentRules.redraw_rows`).
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
    forced_until: Array
    latent_steps: Array
    tail_rows: Array
    track_total: Array
    redraw_1: Array
    redraw_2: Array
    redraw_3: Array
    redraw_4: Array


@dataclass
class SlotScales:
    """Floating-point parameters of requests, float32 [B] each; names as in `SamplingConfig`.

    Attributes:
        depth_temperature: Temperature of streams 1 to S - 1 in audio rows, also without a depth transformer.
        guidance: Guidance scale of a CFG pair, or of guidance within the latent predictor; 1 for none.
        options: Columns of the options in `NUMBER_OPTIONS` (`Option.to_column`), keyed by the name of the field.
    """

    text_temperature: Array
    text_top_p: Array
    audio_temperature: Array
    audio_top_p: Array
    depth_temperature: Array
    depth_top_p: Array
    guidance: Array
    options: Mapping[str, Array]

    @classmethod
    def from_columns(cls, columns: Array) -> Self:
        """Return the parameters in the columns of a table, in the order of `SCALES`, [C, B]."""
        named = dict(zip(SCALES, columns, strict=True))
        options = {name: named.pop(name) for name in NUMBER_OPTIONS}
        return cls(**named, options=options)


def _index(table: type, *others: str) -> dict[str, int]:
    names = [column.name for column in fields(table) if column.name != "options"]
    return {name: index for index, name in enumerate([*names, *others])}


STATE = _index(SlotState)
LIMITS = _index(SlotLimits)
REDRAWS = slice(LIMITS["redraw_1"], LIMITS["redraw_4"] + 1)
SCALES = _index(SlotScales, *NUMBER_OPTIONS)
# Columns of the table of a step on a GPU, one 32-bit word per row each.
COLUMNS = ("role", "slot", "other", "other_slot", "samples", "request_key", *LIMITS, *SCALES)
# Value of each option's column that has no effect. Options that always have an effect are left out.
COLUMNS_OFF = {
    name: option.off if option.column_off is None else option.column_off
    for name, option in NUMBER_OPTIONS.items()
    if option.off is not None
}
