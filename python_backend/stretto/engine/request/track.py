"""The ids of a text track, row by row: what an input-only stream holds beside the frames of a reply."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

KEY = "text"
ENDLESS = 1 << 30


class TextUpdate(NamedTuple):
    """The next ids of an open text, as they travel under a request's own id; is_last: no others follow."""

    ids: list[int]
    is_last: bool

    def to_extra_args(self) -> dict[str, Any]:
        """This update as plain data for `SamplingParams.extra_args`."""
        return {KEY: tuple(self)}

    @classmethod
    def from_extra_args(cls, extra_args: dict[str, Any] | None) -> "TextUpdate | None":
        """The inverse of `to_extra_args`; None for what is no update."""
        return None if extra_args is None or KEY not in extra_args else cls(*extra_args[KEY])


@dataclass(slots=True)
class Track:
    """`ids` in the rows from `first_row` on, the first row of the reply, and `pad_id` in all behind them.

    lane: the stream's place among the streams 1 ... is_live: whether the text has come, or comes, while it is spoken;
    is_open: whether further ids may come, and what stands behind those that are there is not known.
    """

    lane: int
    first_row: int
    ids: list[int]
    pad_id: int
    is_live: bool = False
    is_open: bool = False

    @property
    def end(self) -> int:
        """The row behind the last that has an id of its own."""
        return self.first_row + len(self.ids)

    @property
    def num_known(self) -> int:
        """How many rows of the request are known on this stream."""
        return self.end if self.is_open else ENDLESS

    @property
    def min_frames(self) -> int:
        """How many frames the reply has at the least: the end of a live text must have been read."""
        if not self.is_live:
            return 0
        return ENDLESS if self.is_open else len(self.ids)

    def fill(self, codes: np.ndarray, first: int) -> None:
        """Write the track's ids into `codes` [n, S - 1], the rows from `first` on; those of the prompt stay."""
        begun = max(self.first_row - first, 0)
        at = first + begun - self.first_row
        ids = self.ids[at : at + max(0, len(codes) - begun)]
        codes[begun : begun + len(ids), self.lane] = ids
        codes[begun + len(ids) :, self.lane] = self.pad_id
