"""What a request has read and written on the streams beside stream 0."""

import numpy as np


class RowHistory:
    """The codes of a request's rows, prompt first: the copy that outlives a preemption."""

    def __init__(self, prompt_codes: np.ndarray):
        self._rows = prompt_codes.copy()
        self.num_prompt_rows = self.num_rows = len(prompt_codes)

    def append(self, codes: np.ndarray) -> None:
        """Take the codes [S - 1] of the next row."""
        if self.num_rows == len(self._rows):
            grown = np.zeros((max(64, 2 * self.num_rows), self._rows.shape[1]), np.int32)
            grown[: self.num_rows] = self._rows
            self._rows = grown
        self._rows[self.num_rows] = codes
        self.num_rows += 1

    def truncate(self, num_rows: int) -> None:
        """Forget all rows from `num_rows` on."""
        assert self.num_prompt_rows <= num_rows <= self.num_rows, (num_rows, self.num_rows)
        self.num_rows = num_rows

    def rows(self, first: int, last: int) -> np.ndarray:
        """The codes of rows first ... last - 1, [last - first, S - 1] int32; a view."""
        assert last <= self.num_rows, (first, last, self.num_rows)
        return self._rows[first:last]
