"""Track of a text that a reply reads in windows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.tracks import ENDLESS, Track, placed, rows_of
from stretto.family.base import Family
from stretto.records.sampling import SamplingConfig
from stretto_vibevoice.vibevoice_realtime.family import TextWindows


@dataclass(slots=True)
class WindowTrack(Track):
    """Track of a text whose tokens have rows of their own (`TextWindows`). `ids` [n, 1] are the tokens in order."""

    windows: TextWindows | None = None

    @classmethod
    def begin(
        cls, windows: TextWindows, rules: SegmentRules, first_row: int, ids: Sequence[int], is_open: bool
    ) -> Self:
        """Return the track of a reply that begins with row `first_row`.

        Args:
            ids: Tokens, with the end id if the text is complete.
            is_open: True if more text follows.
        """
        streams = rules.family.track_streams
        pad_id = rules.family.layout.pad_id
        lanes = slice(streams.start - 1, streams.stop - 1)
        track = cls(lanes, first_row, rows_of((), 1), pad_id, is_live=is_open, is_open=True, windows=windows)
        track.extend(ids, not is_open)
        return track

    def extend(self, ids: Sequence[int] | np.ndarray, is_last: bool) -> np.ndarray:
        """Append tokens; return the entries that they add to the tables of a slot, int32 [n, 2]."""
        return Track.extend(self, ids[:-1] if is_last else ids, is_last)

    def entries(self, first: int = 0) -> np.ndarray:
        """Return the entries of the tokens from `first` on, each at its number in the text (`Track.entries`)."""
        return placed(first, self.ids[first:])

    def entries_after(self, num_rows: int) -> np.ndarray:
        """Return all entries, because token numbers are counted from the reply's beginning."""
        return self.entries()

    def limits(self, sampling: SamplingConfig) -> dict[str, int]:
        """Return the number of tokens, ENDLESS while the text is open."""
        return {"track_total": self.num_words}

    def are_known(self, rows: np.ndarray, last: int) -> bool:
        """Return True, because the rows of the reply contain the ids (`Track.are_known`)."""
        return True

    def unconditional(self, family: Family) -> Track | None:
        return None

    @property
    def num_words(self) -> int:
        """Number of tokens of the text, ENDLESS while it is open."""
        return ENDLESS if self.is_open else len(self.ids)

    def first_frame(self) -> int:
        """Return the index in the reply of the first frame; ENDLESS while it is unknown."""
        assert self.windows is not None
        number = min(self.windows.num_words, len(self.ids))
        return ENDLESS if self.is_open and number < self.windows.num_words else number

    def next_frame(self, index: int) -> int:
        """Return the index of the first frame at or after `index`, if all tokens before it arrive."""
        assert self.windows is not None
        while self.windows.is_word(index, self.num_words):
            index += 1
        return index

    def num_known(self, reply: Any) -> int:
        """Return the number of rows that the model may read before the next token must have arrived."""
        assert self.windows is not None
        return self.first_row + int(self.windows.index_of(len(self.ids))) - 1 if self.is_open else ENDLESS

    def fill(self, codes: np.ndarray, first: int) -> None:
        """Do nothing, because the rows of the reply contain the tokens."""


def random_text(windows: TextWindows, number: int) -> tuple[int, ...]:
    """Return a test prompt's text tokens: less than a window, exactly one, or more."""
    random = np.random.default_rng(number)
    return tuple(random.integers(0, windows.num_text_ids, (3, 5, 7, 12, 1, 10, 22)[number % 7]).tolist())
