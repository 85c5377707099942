"""Streamed text input: ids that an input-only stream carries beside the frames of a reply, row by row."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

KEY = "text"
ENDLESS = 1 << 30


class TextUpdate(NamedTuple):
    """Next ids of a streamed text, sent under the id of its request; `is_last` if the text is complete."""

    ids: list[int]
    is_last: bool

    def to_extra_args(self) -> dict[str, Any]:
        """Return this update as plain data for `SamplingParams.extra_args`."""
        return {KEY: tuple(self)}

    @classmethod
    def from_extra_args(cls, extra_args: dict[str, Any] | None) -> "TextUpdate | None":
        """Return the update in `extra_args`, or None if it holds none."""
        return None if extra_args is None or KEY not in extra_args else cls(*extra_args[KEY])


@dataclass(slots=True)
class Track:
    """Ids of an input-only stream: `ids` from row `first_row` on, then `pad_id`.

    Attributes:
        lane: Index of the stream among streams 1 and up.
        first_row: First row of the reply.
        ids: Ids that have arrived.
        pad_id: Id of all rows after them.
        is_live: True if the text arrives while it is spoken.
        is_open: True if more ids may arrive, so that later rows are unknown.
    """

    lane: int
    first_row: int
    ids: list[int]
    pad_id: int
    is_live: bool = False
    is_open: bool = False

    @property
    def end(self) -> int:
        """Row after the last row with an id of its own."""
        return self.first_row + len(self.ids)

    @property
    def num_known(self) -> int:
        """Number of rows of the request that are known on this stream."""
        return self.end if self.is_open else ENDLESS

    @property
    def min_frames(self) -> int:
        """Least number of frames of the reply: the end of a streamed text must have been read."""
        if not self.is_live:
            return 0
        return ENDLESS if self.is_open else len(self.ids)

    def fill(self, codes: np.ndarray, first: int) -> None:
        """Write the ids into `codes` [n, S - 1], rows `first` and up, leaving prompt rows unchanged."""
        begun = max(self.first_row - first, 0)
        at = first + begun - self.first_row
        ids = self.ids[at : at + max(0, len(codes) - begun)]
        codes[begun : begun + len(ids), self.lane] = ids
        codes[begun + len(ids) :, self.lane] = self.pad_id
