"""Rows of an unconditional request, derived from those of its conditional request."""

from dataclasses import replace

import numpy as np

from stretto.engine.request.track import Track
from stretto.engine.scheduling.request_state import RequestState
from stretto.families.base import Family, UnconditionalContext


def unconditional_context(state: RequestState, family: Family) -> np.ndarray:
    """Return the prompt of the unconditional request: int32 [n, S].

    It covers the rows so far, and at least all rows before the audio segment.
    """
    layout, request, audio_start = family.layout, state.request, state.tracker.audio_start
    known = request.num_tokens
    num_rows = max(known, audio_start)
    rows = np.full((num_rows, layout.num_input_streams), layout.pad_id, np.int32)
    rows[:known, 0] = request.all_token_ids[:known]
    rows[:known, 1:] = state.history.rows(0, known)
    if known < num_rows:  # forced rows that the model has not computed yet
        rows[known:, 0] = family.transition[known - num_rows :]
    before = unconditional_rows(rows[:audio_start], family.unconditional, layout.pad_id)
    return np.concatenate([before, unconditional_audio(rows[audio_start:], family)])


def unconditional_rows(rows: np.ndarray, context: UnconditionalContext, pad_id: int) -> np.ndarray:
    """Return the context rows [n, S] with the condition hidden as `context` defines."""
    hidden = rows.copy()
    middle = slice(context.keep_first, max(context.keep_first, len(rows) - context.keep_last))
    hidden[middle] = pad_id
    hidden[middle, 0] = context.null_id
    kept = list(context.kept_streams)
    hidden[middle, kept] = rows[middle, kept]
    return hidden


def unconditional_track(track: Track | None, family: Family) -> Track | None:
    """Return the streamed text as seen by the unconditional request: unchanged, or empty."""
    if track is None or 1 + track.lane not in family.unconditional.hidden_streams:
        return track
    return replace(track, ids=[], pad_id=family.layout.pad_id)


def unconditional_audio(rows: np.ndarray, family: Family) -> np.ndarray:
    """Return the conditional request's audio rows [n, S] as seen by the unconditional one."""
    context, layout = family.unconditional, family.layout
    hidden = rows.copy()
    for stream in context.hidden_streams:
        if stream > 0:
            hidden[:, stream] = layout.pad_id
        else:
            ids = layout.audio[0]
            hidden[(rows[:, 0] >= ids.start) & (rows[:, 0] < ids.stop), 0] = context.null_id
    return hidden
