"""Tracks: ids for a reply's input-only streams, sent with the request or while the reply is generated."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from stretto.family.base import Family
from stretto.family.input_tracks import InputTrack, PositionTrack, TextTrack
from stretto.records.sampling import SamplingConfig

ENDLESS = 1 << 30


@dataclass(slots=True)
class Track:
    """Ids of K input-only streams (text or positions) of one reply: `ids` from row `first_row` on, then `pad_id`.

    Attributes:
        ends_reply: True if the reply ends one row after the last ids.
        lanes: Indices of the streams among streams 1 to S - 1.
        ids: Ids that have arrived, int32 [n, K].
        is_live: True if the text or audio was still being streamed when the request arrived.
        is_open: True if more ids may arrive, in which case later rows are not known yet.
    """

    ends_reply: ClassVar[bool] = False
    lanes: slice
    first_row: int
    ids: np.ndarray
    pad_id: int
    is_live: bool = False
    is_open: bool = False
    _room: np.ndarray | None = field(default=None, init=False, repr=False)  # memory of `ids`, with space for more

    def extend(self, ids: Sequence[int] | np.ndarray, is_last: bool) -> np.ndarray:
        """Append the ids of further rows, row by row, and return their entries for the tables of a slot."""
        num_known = len(self.ids)
        self.append(ids, is_last)
        return self.entries(num_known)

    def append(self, ids: Sequence[int] | np.ndarray, is_last: bool) -> None:
        """Append the ids of further rows, row by row."""
        rows = rows_of(ids, self.ids.shape[1])
        num_known = len(self.ids)
        end = num_known + len(rows)
        if self._room is None or end > len(self._room):  # doubled, so that an hour of frames is not copied per frame
            self._room = np.empty((max(64, 2 * end), self.ids.shape[1]), np.int32)
            self._room[:num_known] = self.ids
        self._room[num_known:end] = rows
        self.ids = self._room[:end]
        self.is_open = not is_last

    def entries(self, first: int = 0) -> np.ndarray:
        """Return the ids from number `first` on with their indices in a slot's tables, here rows, int32 [n, 1 + K]."""
        return placed(self.first_row + first, self.ids[first:])

    def entries_after(self, num_rows: int) -> np.ndarray:
        """Return the entries that a slot needs in addition to the first `num_rows` rows of the request."""
        return self.entries(max(0, num_rows - self.first_row))

    def limits(self, sampling: SamplingConfig) -> dict[str, int]:
        """Return the limits of the reply (`SlotLimits`) that the track determines, keyed by name.

        A reply reads all streamed text, so it has at least one frame for each id.
        """
        if not self.is_live:
            return {}
        return {"audio_min": ENDLESS if self.is_open else max(sampling.audio.min_rows, len(self.ids))}

    def initial_state(self) -> dict[str, int]:
        """Return initial values, by name, of the state columns (`DrawRules.state`) that depend on the track."""
        return {}

    def are_known(self, rows: np.ndarray, last: int) -> bool:
        """Return True if all ids of `rows` [n, S - 1] have arrived; `last` is the index of the row after them."""
        return not self.is_open or last <= self.end

    def unconditional(self, family: Family) -> "Track | None":
        """Return the track of the unconditional request of a CFG pair, or None if its rows already contain the ids.

        The result is this track, or a track of pads if the family hides the text from the unconditional request.
        """
        if 1 + self.lanes.start not in family.unconditional.hidden_streams:
            return self
        return replace(self, ids=self.ids[:0], pad_id=family.layout.pad_id)

    @property
    def end(self) -> int:
        """Row after the last id, from which on all rows have pads on the track's streams."""
        return self.first_row + len(self.ids)

    def num_known(self, reply: Any) -> int:
        """Return the number of rows that the model may read so far (ENDLESS once the track is complete)."""
        return self.end if self.is_open else ENDLESS

    def word_tokens(self, number: int) -> Sequence[int]:
        """Return the tokens of a word that has begun, or none for a break (`DrawRules.word_column`)."""
        return ()

    def fill(self, codes: np.ndarray, first: int) -> None:
        """Write the ids to `codes` [n, S - 1], which begins at row `first`, except to prompt rows."""
        begun = max(self.first_row - first, 0)
        at = first + begun - self.first_row
        ids = self.ids[at : at + max(0, len(codes) - begun)]
        codes[begun : begun + len(ids), self.lanes] = ids
        codes[begun + len(ids) :, self.lanes] = self.pad_id


@dataclass(slots=True)
class CodesTrack(Track):
    """Track of a recording's codes (`CodeTrack`), whose end is also the end of the reply."""

    ends_reply: ClassVar[bool] = True

    def limits(self, sampling: SamplingConfig) -> dict[str, int]:
        """Return limits that end the reply one row after the last codes (see `Track.limits`)."""
        num_rows = ENDLESS if self.is_open else len(self.ids) + 1
        text, audio = (min(limits.max_rows, num_rows) for limits in (sampling.text, sampling.audio))
        return {"text_min": ENDLESS, "text_max": text, "audio_max": audio}


def common_track(family: Family, spec: InputTrack, rows: range, ids: Sequence[int], is_open: bool) -> Track:
    """Return a reply's track whose ids are read row by row; `rows` are those that the reply may have."""
    streams = spec.streams
    lanes = slice(streams.start - 1, streams.stop - 1)
    if isinstance(spec, PositionTrack):
        return Track(lanes, rows.start, rows_of(spec.ids[: len(rows)], 1), family.layout.pad_id)
    entries = rows_of(ids, len(streams))
    if isinstance(spec, TextTrack):
        return Track(lanes, rows.start, entries, spec.pad_id, is_live=is_open, is_open=is_open)
    return CodesTrack(lanes, rows.start, entries, family.layout.pad_id, is_live=is_open, is_open=is_open)


def rows_of(ids: Sequence[int] | range | np.ndarray, width: int) -> np.ndarray:
    """Reshape ids in row order to the rows of a track, int32 [n, width]."""
    return np.asarray(ids, np.int32).reshape(-1, width)


def placed(first: int, ids: np.ndarray) -> np.ndarray:
    """Return consecutive entries of a slot's tables, int32 [n, 1 + K], for ids [n, K]."""
    num_entries = len(ids)
    entries = np.empty((num_entries, 1 + ids.shape[1]), np.int32)  # `column_stack` and `arange` are slow for one frame
    entries[:, 0] = first if num_entries == 1 else np.arange(first, first + num_entries)
    entries[:, 1:] = ids
    return entries
