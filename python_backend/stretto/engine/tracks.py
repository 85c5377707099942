"""Tracks: ids for a reply's input-only streams, sent with the request or while the reply is generated."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from stretto.families.base import TextGroups, TextTrack, WordScript
from stretto.records.prompt import unpack_words

ENDLESS = 1 << 30


@dataclass(slots=True)
class Track:
    """Ids of K input-only streams (text, positions or given codes): `ids` from row `first_row`, then `pad_id`.

    Attributes:
        lanes: Indices of the streams among streams 1 to S - 1.
        first_row: First row of the reply.
        ids: Ids that have arrived, int32 [n, K].
        pad_id: Id in all later rows.
        is_live: True if the text or audio was still being streamed when the request arrived.
        is_open: True if more ids may arrive, in which case later rows are not known yet.
        ends_reply: True if the reply ends one row after the last ids.
    """

    lanes: slice
    first_row: int
    ids: np.ndarray
    pad_id: int
    is_live: bool = False
    is_open: bool = False
    ends_reply: bool = False
    _room: np.ndarray | None = field(default=None, init=False, repr=False)  # memory of `ids`, with space for more

    def extend(self, ids: Sequence[int] | np.ndarray, is_last: bool) -> np.ndarray:
        """Append the ids of further rows, row by row, and return them, int32 [n, K]."""
        rows, num_known = rows_of(ids, self.ids.shape[1]), len(self.ids)
        end = num_known + len(rows)
        if self._room is None or end > len(self._room):  # doubled, so that an hour of frames is not copied per frame
            self._room = np.empty((max(64, 2 * end), self.ids.shape[1]), np.int32)
            self._room[:num_known] = self.ids
        self._room[num_known:end] = rows
        self.ids = self._room[:end]
        self.is_open = not is_last
        return rows

    @property
    def place(self) -> int:
        """Index of the next id in a slot's tables: the id's row."""
        return self.end

    @property
    def end(self) -> int:
        """Row after the last id; this row and all later ones contain pads on the track's streams."""
        return self.first_row + len(self.ids)

    def num_known(self, reply: Any) -> int:
        """Return the number of rows that the model may read, given the state of the reply; ENDLESS for a whole track.

        Args:
            reply: State of the reply (`ReplyState`).
        """
        return self.end if self.is_open else ENDLESS

    @property
    def min_frames(self) -> int:
        """Minimum number of frames of the reply, so that it reads all streamed text; 0 if none is streamed."""
        if not self.is_live:
            return 0
        return ENDLESS if self.is_open else len(self.ids)

    @property
    def max_rows(self) -> int:
        """Maximum number of rows of a reply that ends with the track; ENDLESS while the track is open."""
        return ENDLESS if self.is_open else len(self.ids) + 1

    def fill(self, codes: np.ndarray, first: int) -> None:
        """Write the ids to `codes` [n, S - 1], which begins at row `first`, except to prompt rows."""
        begun = max(self.first_row - first, 0)
        at = first + begun - self.first_row
        ids = self.ids[at : at + max(0, len(codes) - begun)]
        codes[begun : begun + len(ids), self.lanes] = ids
        codes[begun + len(ids) :, self.lanes] = self.pad_id


@dataclass(slots=True)
class GroupTrack(Track):
    """Track for given rows (`TextGroups`): `ids` [n, 1] in the order in which the reply reads them.

    A given row of the reply has -1 - i on the text stream until `fill` replaces it with id number i.

    Attributes:
        groups: Layout of the groups.
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
    def begin(
        cls, lanes: slice, first_row: int, ids: Sequence[int], codes: range, text: TextTrack, is_open: bool
    ) -> "GroupTrack":
        """Return the track of a reply that begins with row `first_row`.

        Args:
            lanes: Slice that selects the text stream from streams 1 to S - 1.
            first_row: First row of the reply.
            ids: Codes of a recording, then ids of the text, with its end id if the text is complete.
            codes: Range of ids that are codes.
            text: The family's text track.
            is_open: True if more text follows.
        """
        groups, num_codes = text.groups, num_leading(ids, codes)
        assert groups is not None
        num_groups, num_before = 1 + num_codes // groups.num_frames, num_codes % groups.num_frames
        track = cls(
            lanes, first_row, rows_of((), 1), text.pad_id, is_live=is_open, is_open=True,
            groups=groups, codes=tuple(ids[:num_codes]), num_before=num_before,
            num_first=num_groups * groups.num_words + num_codes,
        )  # fmt: skip
        track.extend(ids[num_codes:], not is_open)
        return track

    def extend(self, ids: Sequence[int] | np.ndarray, is_last: bool) -> np.ndarray:
        """Append text ids; return the ids of all rows that become known, including recorded codes."""
        assert self.groups is not None
        laid, num_words, num_frames = list[int](), self.groups.num_words, self.groups.num_frames
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

    @property
    def place(self) -> int:
        """Index of the next id in a slot's tables: the id's index in `ids`."""
        return len(self.ids)

    def num_known(self, reply: Any) -> int:
        """Return the number of rows that the model may read, assuming that all further rows are given rows."""
        return reply.position + len(self.ids) - reply.num_given if self.is_open else ENDLESS

    @property
    def num_total(self) -> int:
        """Number of given rows of the reply; ENDLESS while the text is open."""
        return ENDLESS if self.is_open else len(self.ids)

    @property
    def min_frames(self) -> int:
        """Minimum number of frames: 0, because given rows already keep the reply from ending before its text."""
        return 0

    def fill(self, codes: np.ndarray, first: int) -> None:
        """Write known ids into the given rows of `codes` [n, S - 1]."""
        words = codes[:, self.lanes]
        is_known = (words < 0) & (words >= -len(self.ids))
        words[is_known] = self.ids[-1 - words[is_known], 0]


def num_leading(ids: Sequence[int], codes: range) -> int:
    """Return how many ids at the start of `ids` are in `codes`."""
    return next((index for index, token_id in enumerate(ids) if token_id not in codes), len(ids))


def rows_of(ids: Sequence[int] | range | np.ndarray, width: int) -> np.ndarray:
    """Reshape ids in row order to the rows of a track, int32 [n, width]."""
    return np.asarray(ids, np.int32).reshape(-1, width)


class Word(NamedTuple):
    """Word of a text, given as positions in the list of the text's tokens.

    Attributes:
        end: Place after the word's last token; its first token follows the previous word.
        padding: Minimum number of rows without a new word after this word.
        ahead_start: Place of the first token of the word that the second stream shows in advance.
        ahead_end: Place after the last token of that word; `ahead_start` if there is none.
    """

    end: int
    padding: int
    ahead_start: int
    ahead_end: int


@dataclass(slots=True)
class WordTrack(Track):
    """Track of words that the model requests (`WordScript`); `ids` [n, 1] are words in the format of `pack_word`.

    A word becomes known once the word that the second stream shows in advance is known, or the text is complete.

    Attributes:
        script: Rules of the words.
        tokens: Tokens of all words, one after the other.
        words: Known words, in order.
        num_rows: Minimum number of rows for the first n known words, by n: from each row that takes a word to the row
            that may take the next one.
        waiting: End and padding of each word that has arrived but is not known yet.
        capacity: Number of tokens, and of words, for which a slot has room.
    """

    script: WordScript = field(default_factory=WordScript)
    tokens: list[int] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    num_rows: list[int] = field(default_factory=lambda: [0])
    waiting: list[tuple[int, int]] = field(default_factory=list)
    capacity: int = 0

    @classmethod
    def begin(
        cls, lanes: slice, first_row: int, ids: Sequence[int], text: TextTrack, is_open: bool, capacity: int
    ) -> "WordTrack":
        """Return the track of a reply that begins with row `first_row`.

        Args:
            lanes: Slice that selects the second stream from streams 1 to S - 1.
            first_row: First row of the reply.
            ids: Packed words, with the end id if the text is complete.
            text: The family's text track.
            is_open: True if more text follows.
            capacity: Number of tokens, and of words, for which a slot has room.
        """
        assert text.words is not None
        track = cls(
            lanes, first_row, rows_of((), 1), text.pad_id, is_live=is_open, is_open=True,
            script=text.words, capacity=capacity,
        )  # fmt: skip
        track.extend(ids, not is_open)
        return track

    def extend(self, ids: Sequence[int] | np.ndarray, is_last: bool) -> np.ndarray:
        """Append words; return the entries that they add to the table of a slot, int32 [n, 2]: place and value."""
        first_token, first_word = len(self.tokens), len(self.words)
        for tokens, padding in unpack_words(ids[:-1] if is_last else ids):
            self.tokens += tokens
            self.waiting.append((len(self.tokens), padding))
        Track.extend(self, ids, is_last)
        self._note_known()
        return np.concatenate([self.token_entries(first_token), self.word_entries(first_word)])

    def _note_known(self) -> None:
        """Move the first words of `waiting` to `words`, as long as the words to show in advance are known."""
        num_moved = 0
        for index, (end, padding) in enumerate(self.waiting):
            begin = self.words[-1].end if self.words else 0
            ahead = self._ahead(index) if self.script.ahead and end > begin else (end, end)
            if ahead is None:
                break
            self.words.append(Word(end, padding, *ahead))
            self.num_rows.append(self.num_rows[-1] + self._num_rows(begin, end, padding))
            num_moved += 1
        del self.waiting[:num_moved]

    def _ahead(self, index: int) -> tuple[int, int] | None:
        """Return the places of the word `script.ahead` words after a waiting word; None while it is not known."""
        begin, left = self.waiting[index][0], self.script.ahead
        for end, _ in self.waiting[index + 1 :]:
            left -= end > begin  # breaks do not count
            if left == 0:
                return begin, end
            begin = end
        return None if self.is_open else (begin, begin)

    def token_entries(self, first: int = 0) -> np.ndarray:
        """Return the table entries of the tokens from number `first`, int32 [n, 2]."""
        values = np.array(self.tokens[first:], np.int32)
        return np.stack([np.arange(first, first + len(values), dtype=np.int32), values], 1)

    def word_entries(self, first: int = 0) -> np.ndarray:
        """Return the table entries of the known words from number `first`, int32 [n, 2]."""
        values = np.array(self.words[first:], np.int32).reshape(-1)
        start = self.capacity + len(Word._fields) * first
        return np.stack([np.arange(start, start + len(values), dtype=np.int32), values], 1)

    def _num_rows(self, begin: int, end: int, padding: int) -> int:
        """Return the minimum number of rows from the row that takes a word to the row that may take the next one."""
        if begin == end:
            return max(1, padding)
        return 1 + max(self.rows_of_tokens(begin + bool(self.script.ahead), end), padding)

    def rows_of_tokens(self, begin: int, end: int) -> int:
        """Return the number of rows that the tokens from `begin` to `end` take, not counting the row of a request."""
        num_rows = 0
        while begin < end:
            begin += 2 if self.script.ahead and self.tokens[begin] == self.script.new_id else 1
            num_rows += 1
        return num_rows

    def tokens_of(self, number: int) -> list[int]:
        """Return the tokens of a known word; empty for a break."""
        return self.tokens[self.words[number - 1].end if number else 0 : self.words[number].end]

    def num_known(self, reply: Any) -> int:
        """Return the number of rows after which the model may need a word that has not arrived."""
        if not self.is_open:
            return ENDLESS
        num_rows = self.num_rows[-1] - self.num_rows[reply.taken]  # of the words that are known and not taken
        num_rows += max(self.rows_of_tokens(reply.main_at, reply.main_end), reply.forced)
        return reply.position + num_rows - 1

    @property
    def num_total(self) -> int:
        """Number of words of the text; ENDLESS while it is open."""
        return ENDLESS if self.is_open else len(self.words)

    @property
    def min_frames(self) -> int:
        """Minimum number of frames: 0, because the reply cannot end before its text."""
        return 0

    def fill(self, codes: np.ndarray, first: int) -> None:
        """Do nothing, because the rows of the reply contain the ids of both streams."""
