"""What the unconditional half of a pair reads in the place of the conditional one's rows."""

from dataclasses import replace

import numpy as np

from stretto.engine.request.track import Track
from stretto.engine.scheduling.request_state import RequestState
from stretto.families.base import Family, UnconditionalContext


def unconditional_context(state: RequestState, family: Family) -> np.ndarray:
    """The rows so far, at least all before the audio segment, as the unconditional half sees them: [n, S] int32."""
    layout, request, audio_start = family.layout, state.request, state.tracker.audio_start
    known = request.num_tokens
    num_rows = max(known, audio_start)
    rows = np.full((num_rows, layout.num_input_streams), layout.pad_id, np.int32)
    rows[:known, 0] = request.all_token_ids[:known]
    rows[:known, 1:] = state.history.rows(0, known)
    if known < num_rows:  # the forced rows, which the model has yet to read
        rows[known:, 0] = family.transition[known - num_rows :]
    before = unconditional_rows(rows[:audio_start], family.unconditional, layout.pad_id)
    return np.concatenate([before, unconditional_audio(rows[audio_start:], family)])


def unconditional_rows(rows: np.ndarray, context: UnconditionalContext, pad_id: int) -> np.ndarray:
    """The context that the unconditional half sees, from the conditional one's rows [n, S]."""
    hidden = rows.copy()
    middle = slice(context.keep_first, max(context.keep_first, len(rows) - context.keep_last))
    hidden[middle] = pad_id
    hidden[middle, 0] = context.null_id
    kept = list(context.kept_streams)
    hidden[middle, kept] = rows[middle, kept]
    return hidden


def unconditional_track(track: Track | None, family: Family) -> Track | None:
    """What the unconditional half reads of a text track: all of it, or nothing."""
    if track is None or 1 + track.lane not in family.unconditional.hidden_streams:
        return track
    return replace(track, ids=[], pad_id=family.layout.pad_id)


def unconditional_audio(rows: np.ndarray, family: Family) -> np.ndarray:
    """What the unconditional half reads of the conditional one's audio rows [n, S]."""
    context, layout = family.unconditional, family.layout
    hidden = rows.copy()
    for stream in context.hidden_streams:
        if stream > 0:
            hidden[:, stream] = layout.pad_id
        else:
            ids = layout.audio[0]
            hidden[(rows[:, 0] >= ids.start) & (rows[:, 0] < ids.stop), 0] = context.null_id
    return hidden
