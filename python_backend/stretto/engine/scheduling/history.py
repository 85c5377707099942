"""History of a request's rows on streams 1 and up."""

from collections.abc import Sequence

import numpy as np

from stretto.engine.request.track import Track

MAX_NEWEST = 64


class RowHistory:
    """Codes of all rows of a request, prompt first; the copy that survives preemption.

    The newest rows are kept as lists and copied into the array in batches. Ids of the streamed text input are
    overwritten from the track when rows are read.
    """

    __slots__ = ("_newest", "_num_laid", "_rows", "_track", "num_prompt_rows", "num_rows")

    def __init__(self, prompt_codes: np.ndarray, track: Track | None = None):
        self._rows, self._track = prompt_codes.copy(), track
        self._newest: list[Sequence[int]] = []
        self._num_laid = len(prompt_codes)
        self.num_prompt_rows = self.num_rows = len(prompt_codes)

    def put(self, row: int, codes: Sequence[Sequence[int]]) -> None:
        """Record rows.

        Args:
            row: Index of the first row: the next one, or an earlier one, which truncates the history.
            codes: Codes of the rows, [n][S - 1].
        """
        if row != self.num_rows:
            self.truncate(row)
        self.num_rows += len(codes)
        self._newest += codes
        if len(self._newest) >= MAX_NEWEST:
            self._lay()

    def _lay(self) -> None:
        num_rows = self.num_rows
        if num_rows > len(self._rows):
            grown = np.zeros((max(MAX_NEWEST, 2 * num_rows), self._rows.shape[1]), np.int32)
            grown[: self._num_laid] = self._rows[: self._num_laid]
            self._rows = grown
        if self._newest:
            self._rows[self._num_laid : num_rows] = self._newest
        self._newest, self._num_laid = [], num_rows

    def truncate(self, num_rows: int) -> None:
        """Remove all rows from `num_rows` on."""
        assert self.num_prompt_rows <= num_rows <= self.num_rows, (num_rows, self.num_rows)
        self._lay()
        self._num_laid = self.num_rows = num_rows

    def rows(self, first: int, last: int) -> np.ndarray:
        """Return the codes of rows `first` to `last` - 1, int32 [last - first, S - 1], as a view."""
        assert last <= self.num_rows, (first, last, self.num_rows)
        if last > self._num_laid:
            self._lay()
        rows = self._rows[first:last]
        if self._track is not None:
            self._track.fill(rows, first)
        return rows
