"""Track of a text whose ids have rows without frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.tracks import ENDLESS, Track, placed, rows_of
from stretto.records.sampling import SamplingConfig
from stretto_cosyvoice3.family import GroupedText, TextGroups


@dataclass(slots=True)
class GroupTrack(Track):
    """Track for given rows (`TextGroups`): `ids` [n, 1] in the order in which the reply reads them.

    A given row of the reply has -1 - i on the text stream until `fill` replaces it with id number i.

    Attributes:
        codes: Codes of a recording that are not in `ids` yet.
        num_words: Number of text ids in `ids`, not counting the end id.
        num_first: Number of given rows before the first sampled row, unless the text ends earlier.
        num_before: Number of codes before the first sampled row in its group.
    """

    groups: TextGroups | None = None
    codes: tuple[int, ...] = ()
    num_words: int = 0
    num_first: int = 0
    num_before: int = 0

    @classmethod
    def begin(cls, text: GroupedText, rules: SegmentRules, first_row: int, ids: Sequence[int], is_open: bool) -> Self:
        """Return the track of a reply that begins with row `first_row`.

        Args:
            ids: Codes of a recording, then ids of the text, with its end id if the text is complete.
        """
        groups = text.groups
        streams = rules.family.track_streams
        num_codes = rules.num_recorded(ids)
        num_groups = 1 + num_codes // groups.num_frames
        num_before = num_codes % groups.num_frames
        lanes = slice(streams.start - 1, streams.stop - 1)
        pad_id = rules.family.layout.pad_id
        track = cls(
            lanes, first_row, rows_of((), 1), pad_id, is_live=is_open, is_open=True,
            groups=groups, codes=tuple(ids[:num_codes]), num_before=num_before,
            num_first=num_groups * groups.num_words + num_codes,
        )  # fmt: skip
        track.extend(ids[num_codes:], not is_open)
        return track

    def extend(self, ids: Sequence[int] | np.ndarray, is_last: bool) -> np.ndarray:
        """Append text ids, and return the entries that they and recorded codes add to a slot's tables."""
        assert self.groups is not None
        laid = list[int]()
        num_words = self.groups.num_words
        num_frames = self.groups.num_frames
        for token_id in ids[:-1] if is_last else ids:
            laid.append(token_id)
            self.num_words += 1
            if self.num_words % num_words == 0:
                laid += self.codes[:num_frames]
                self.codes = self.codes[num_frames:]
        if is_last:  # the end id is not a word, and the remaining codes follow it
            laid += [*ids[-1:], *self.codes]
            self.codes = ()
        return Track.extend(self, laid, is_last)

    def entries(self, first: int = 0) -> np.ndarray:
        """Return the ids from number `first` on as entries of a slot's tables."""
        return placed(first, self.ids[first:])

    def entries_after(self, num_rows: int) -> np.ndarray:
        """Return all entries, because rows contain only the numbers of ids."""
        return self.entries()

    def limits(self, sampling: SamplingConfig) -> dict[str, int]:
        """Return the number of given rows, which keeps the reply from ending before its text."""
        return {"track_total": ENDLESS if self.is_open else len(self.ids)}

    def initial_state(self) -> dict[str, int]:
        """Return the number of codes in the first group and of given rows before it."""
        return {"num_in_group": self.num_before, "num_first": self.num_first}

    def are_known(self, rows: np.ndarray, last: int) -> bool:
        """Return False if the id of a given row has not arrived."""
        return not (rows < 0).any()

    def num_known(self, reply: Any) -> int:
        """Return the number of rows that the model may read if all further rows are given rows."""
        num_given, *_ = reply.own_values
        return reply.position + len(self.ids) - num_given if self.is_open else ENDLESS

    def fill(self, codes: np.ndarray, first: int) -> None:
        """Write known ids into the given rows of `codes` [n, S - 1]."""
        words = codes[:, self.lanes]
        is_known = (words < 0) & (words >= -len(self.ids))
        words[is_known] = self.ids[-1 - words[is_known], 0]
