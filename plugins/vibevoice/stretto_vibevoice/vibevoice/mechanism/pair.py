"""CFG pairs whose unconditional request reads only one stretch of audio."""

from typing import ClassVar

import numpy as np

from stretto.engine.protocol import NO_CHANGE
from stretto.engine.reply_rules import UNKNOWN
from stretto.engine.scheduling.request_state import NOT_YET, GuidancePair, PairScheduler, RequestState
from stretto_vibevoice.vibevoice.family import StretchContext


class StretchPair(GuidancePair):
    """CFG pair whose unconditional request begins anew with each stretch of audio.

    The context of the unconditional request is the conditional one's rows from the mark that begins the stretch, so
    positions in the two requests differ by a constant. A constant hidden state guides the first frame of a stretch
    (`StretchReadout`). The unconditional request is created after this frame, and the conditional one waits for it.
    """

    follows_rows: ClassVar[bool] = True

    def __init__(self, context: StretchContext, conditional: str):
        super().__init__(conditional)
        self._stretches = context.stretches
        self._start = UNKNOWN  # position of the mark that began the stretch; UNKNOWN between stretches
        self._held_at = NOT_YET  # index in the reply of the second frame of a stretch that has just begun

    @property
    def may_wait(self) -> bool:
        """True between stretches and in the first frame of one."""
        return self.unconditional is None

    def is_held(self, state: RequestState) -> bool:
        """Return True from the second frame of a stretch on, until the unconditional request exists."""
        return self.awaits_unconditional or state.next_output >= self._held_at

    def context(self, state: RequestState) -> np.ndarray:
        """Return the rows of the stretch so far, int32 [n, S]."""
        rows = slice(self._start, state.request.num_tokens)
        ids = state.request.all_token_ids[rows]
        codes = state.history.rows(rows.start, rows.stop)
        return np.column_stack([ids, codes]).astype(np.int32)

    def begin(self, state: RequestState) -> bool:
        """Return False, because the unconditional request is created only after the first frame."""
        self._begin_stretch(state, state.request.num_prompt_tokens - 1)
        return False

    def follow(self, state: RequestState, token_id: int, is_guided: bool, scheduler: PairScheduler) -> int:
        """Begin the unconditional request after the first frame of a stretch, and end it with the stretch."""
        position = state.reply.position
        if token_id in (self._stretches.begin, self._stretches.end):
            if self.unconditional is not None:
                scheduler.end_unconditional(state)
            self._start = UNKNOWN
            self._held_at = NOT_YET
            if token_id == self._stretches.begin:
                self._begin_stretch(state, position - 1)
            return NO_CHANGE
        if token_id != self._stretches.frame:
            return NO_CHANGE
        is_first = self._start != UNKNOWN and self._start == position - 2
        if is_first:
            scheduler.begin_unconditional(state)
        return state.note_guidance(is_first or is_guided)

    def attach(self, first_output: int) -> None:
        """Record that the unconditional request has been created (`GuidancePair.attach`)."""
        super().attach(first_output)
        self._held_at = NOT_YET

    def _begin_stretch(self, state: RequestState, start: int) -> None:
        self._start = start
        self._held_at = state.request.num_output_tokens + 1
