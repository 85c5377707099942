"""Ids of all rows of a request, kept across preemption."""

from collections.abc import Sequence

import numpy as np

from stretto.engine.tracks import Track

MAX_NEWEST = 64


class RowHistory:
    """Ids of streams 1 to S - 1 in all rows of a request, prompt first, kept across preemption.

    The ids of input-only streams are taken from the request's track whenever rows are read.
    """

    __slots__ = ("_newest", "_num_laid", "_rows", "_track", "num_prompt_rows", "num_rows")

    def __init__(self, prompt_codes: np.ndarray, track: Track | None = None):
        self._rows = prompt_codes.copy()
        self._track = track
        self._newest: list[Sequence[int]] = []
        self._num_laid = len(prompt_codes)
        self.num_prompt_rows = self.num_rows = len(prompt_codes)

    def put(self, row: int, codes: Sequence[Sequence[int]]) -> None:
        """Remove recorded rows from index `row` on, then append `codes`, [n][S - 1]."""
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
        self._newest = []
        self._num_laid = num_rows

    def truncate(self, num_rows: int) -> None:
        """Remove all rows except the first `num_rows`."""
        assert self.num_prompt_rows <= num_rows <= self.num_rows, (num_rows, self.num_rows)
        self._lay()
        self._num_laid = self.num_rows = num_rows

    def rows(self, first: int, last: int) -> np.ndarray:
        """Return a view of the ids in rows `first` to `last` - 1, int32 [last - first, S - 1]."""
        assert last <= self.num_rows, (first, last, self.num_rows)
        if last > self._num_laid:
            self._lay()
        rows = self._rows[first:last]
        if self._track is not None:
            self._track.fill(rows, first)
        return rows
