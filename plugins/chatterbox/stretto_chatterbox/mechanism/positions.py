"""Learned positions of the rows: track of a reply's, and CFG pairs that share the prompt's."""

from collections.abc import Sequence

import numpy as np

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.scheduling.request_state import GuidancePair, RequestState
from stretto.engine.tracks import Track, rows_of
from stretto_chatterbox.family import PositionContext, PositionTrack


def begin_track(
    positions: PositionTrack, rules: SegmentRules, first_row: int, ids: Sequence[int], is_open: bool
) -> Track:
    """Return the positions of all rows that a reply may have.

    Args:
        ids: Unused, because the positions do not depend on the request.
        is_open: Unused.
    """
    positions_of_reply = positions.ids[: rules.max_model_len - first_row]
    streams = positions.streams
    lanes = slice(streams.start - 1, streams.stop - 1)
    return Track(lanes, first_row, rows_of(positions_of_reply, 1), rules.family.layout.pad_id)


class PositionPair(GuidancePair):
    """CFG pair whose unconditional request has the positions of the conditional one.

    Args:
        context: Rules for unconditional requests, which have no constants of their own.
    """

    def __init__(self, context: PositionContext, conditional: str):
        super().__init__(conditional)

    def context(self, state: RequestState) -> np.ndarray:
        """Return the prompt of the unconditional request with all positions, int32 [n, S]."""
        rows = super().context(state)
        num_computed = state.request.num_tokens
        stream = state.reply.rules.family.track_streams.start
        rows[:num_computed, stream] = state.history.rows(0, num_computed)[:, stream - 1]
        return rows
