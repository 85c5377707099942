"""Learned positions of the rows of a CFG pair, whose requests have equal positions."""

import numpy as np

from stretto.engine.scheduling.request_state import GuidancePair, RequestState
from stretto_chatterbox.family import PositionContext


class PositionPair(GuidancePair):
    """CFG pair whose unconditional request has the positions of the conditional one."""

    def __init__(self, context: PositionContext, conditional: str):
        super().__init__(conditional)

    def context(self, state: RequestState) -> np.ndarray:
        """Return the prompt of the unconditional request, with the conditional one's positions, int32 [n, S]."""
        rows = super().context(state)
        num_computed = state.request.num_tokens
        stream = state.reply.rules.family.track_streams.start
        rows[:num_computed, stream] = state.history.rows(0, num_computed)[:, stream - 1]
        return rows
