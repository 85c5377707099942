"""CFG pairs whose unconditional request reads frames only."""

from typing import ClassVar

import numpy as np

from stretto.engine.protocol import NO_CHANGE
from stretto.engine.scheduling.request_state import NOT_YET, GuidancePair, PairScheduler, RequestState
from stretto_vibevoice.vibevoice_realtime.family import WindowContext
from stretto_vibevoice.vibevoice_realtime.mechanism.track import WindowTrack


class WindowPair(GuidancePair):
    """CFG pair whose unconditional request waits while the conditional one reads a window of text.

    The unconditional request's context is a row that each voice has for it, and the frames so far. The first frame is
    guided by a constant of the voice, the hidden state of that row. The unconditional request is created after this
    frame, and the conditional one samples no second frame before.
    """

    follows_rows: ClassVar[bool] = True

    def __init__(self, context: WindowContext, conditional: str):
        self._windows = context.windows
        self._state = None
        super().__init__(conditional)

    _state: RequestState | None

    @property
    def _track(self) -> WindowTrack:
        assert self._state is not None
        track = self._state.track
        assert isinstance(track, WindowTrack)
        return track

    @property
    def first_output(self) -> int:
        """Reply index of the next frame that the unconditional request guides; `NOT_YET` without such a request."""
        if self.unconditional is None or self._state is None:
            return NOT_YET
        return self._track.next_frame(self._state.next_output)

    @first_output.setter
    def first_output(self, index: int) -> None:
        """Ignore the index that the base class sets, because the property computes it."""

    @property
    def may_wait(self) -> bool:
        """True, because a window of text may begin or end with any row."""
        return True

    def is_held(self, state: RequestState) -> bool:
        """Return True from the second frame on, until the unconditional request exists."""
        if self.unconditional is not None or self._state is None:
            return self.awaits_unconditional
        return state.next_output > self._track.first_frame()

    def begin(self, state: RequestState) -> bool:
        """Return False, because the unconditional request is created after the first frame."""
        self._state = state
        return False

    def context(self, state: RequestState) -> np.ndarray:
        """Return the voice's row for unconditional requests, then the frames so far, int32 [1 + n, S]."""
        number = state.request.num_tokens
        ids = np.asarray(state.request.all_token_ids[:number])
        rows = np.column_stack([ids, state.history.rows(0, number)]).astype(np.int32)
        voice = int(np.searchsorted(self._windows.first_rows, ids[0], side="right"))
        first = np.zeros((1, rows.shape[1]), np.int32)
        first[0, 0] = self._windows.first_rows[voice] - 1
        return np.concatenate([first, rows[ids == self._windows.frame]])

    def follow(self, state: RequestState, token_id: int, is_guided: bool, scheduler: PairScheduler) -> int:
        """Create the unconditional request after the first frame (`GuidancePair.follow`)."""
        if token_id != self._windows.frame:
            return NO_CHANGE
        is_first = self.unconditional is None
        if is_first:
            scheduler.begin_unconditional(state)
        return state.note_guidance(is_first or is_guided)
