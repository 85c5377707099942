"""The ids of a text track, row by row: what an input-only stream holds beside the frames of a reply."""

from dataclasses import dataclass

import numpy as np


@dataclass(slots=True)
class Track:
    """`ids` in the rows from `first_row` on, the first row of the reply, and `pad_id` in all behind them.

    lane: the stream's place among the streams 1 ...
    """

    lane: int
    first_row: int
    ids: list[int]
    pad_id: int

    @property
    def end(self) -> int:
        """The row behind the last that has an id of its own."""
        return self.first_row + len(self.ids)

    def fill(self, codes: np.ndarray, first: int) -> None:
        """Write the track's ids into `codes` [n, S - 1], the rows from `first` on; those of the prompt stay."""
        begun = max(self.first_row - first, 0)
        ids = (
            self.ids[first + begun - self.first_row : first + len(codes) - self.first_row] if begun < len(codes) else []
        )
        codes[begun : begun + len(ids), self.lane] = ids
        codes[begun + len(ids) :, self.lane] = self.pad_id
