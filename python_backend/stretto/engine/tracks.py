"""Tracks: ids for a reply's input-only streams, sent with the request or while the reply is generated."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from stretto.families.base import Family, TextGroups, TextTrack, WordScript
from stretto.records.prompt import unpack_words
from stretto.records.sampling import SamplingConfig

ENDLESS = 1 << 30


@dataclass(slots=True)
class Track:
    """Ids of K input-only streams (text or positions): `ids` from row `first_row`, then `pad_id`.

    Attributes:
        ends_reply: True if the reply ends one row after the last ids.
        lanes: Indices of the streams among streams 1 to S - 1.
        first_row: First row of the reply.
        ids: Ids that have arrived, int32 [n, K].
        pad_id: Id in all later rows.
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
        """Append the ids of further rows, row by row; return the entries of a slot's tables that they add."""
        num_known = len(self.ids)
        self._append(ids, is_last)
        return self.entries(num_known)

    def _append(self, ids: Sequence[int] | np.ndarray, is_last: bool) -> None:
        rows, num_known = rows_of(ids, self.ids.shape[1]), len(self.ids)
        end = num_known + len(rows)
        if self._room is None or end > len(self._room):  # doubled, so that an hour of frames is not copied per frame
            self._room = np.empty((max(64, 2 * end), self.ids.shape[1]), np.int32)
            self._room[:num_known] = self.ids
        self._room[num_known:end] = rows
        self.ids = self._room[:end]
        self.is_open = not is_last

    def entries(self, first: int = 0) -> np.ndarray:
        """Return entries of a slot's tables (`SlotTables`) for the ids from number `first` on.

        Returns:
            Place of each id in the table, and the ids: int32 [n, 1 + K]. Here, the place is the row.
        """
        return placed(self.first_row + first, self.ids[first:])

    def entries_after(self, num_rows: int) -> np.ndarray:
        """Return the entries that a slot needs in addition to the first `num_rows` rows of the request."""
        return self.entries(max(0, num_rows - self.first_row))

    def limits(self, sampling: SamplingConfig) -> dict[str, int]:
        """Return the limits of the reply (`SlotLimits`) that the track determines, keyed by name.

        A reply reads all streamed text, so it has at least one frame for each id.

        Args:
            sampling: Sampling options of the request.
        """
        if not self.is_live:
            return {}
        return {"audio_min": ENDLESS if self.is_open else max(sampling.audio.min_rows, len(self.ids))}

    def initial_state(self) -> dict[str, int]:
        """Return the state columns (`ReplyState`) that the track determines before a reply, keyed by name."""
        return {}

    def are_known(self, rows: np.ndarray, last: int) -> bool:
        """Return True if all ids of some rows have arrived.

        Args:
            rows: Ids of the rows, after `fill`, [n, S - 1].
            last: Index of the row after the last one.
        """
        return not self.is_open or last <= self.end

    def unconditional(self, family: Family) -> "Track | None":
        """Return the track of the unconditional request of a CFG pair; None if its rows already contain the ids.

        It is this track, or only pads if the family hides the text from the unconditional request.
        """
        if 1 + self.lanes.start not in family.unconditional.hidden_streams:
            return self
        return replace(self, ids=self.ids[:0], pad_id=family.layout.pad_id)

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

    def fill(self, codes: np.ndarray, first: int) -> None:
        """Write the ids to `codes` [n, S - 1], which begins at row `first`, except to prompt rows."""
        begun = max(self.first_row - first, 0)
        at = first + begun - self.first_row
        ids = self.ids[at : at + max(0, len(codes) - begun)]
        codes[begun : begun + len(ids), self.lanes] = ids
        codes[begun + len(ids) :, self.lanes] = self.pad_id


@dataclass(slots=True)
class CodesTrack(Track):
    """Track of a recording's codes (`CodeTrack`); the reply ends with the recording, not with a sampled id."""

    ends_reply: ClassVar[bool] = True

    def limits(self, sampling: SamplingConfig) -> dict[str, int]:
        """Return limits that end the reply one row after the last codes; see `Track.limits`."""
        num_rows = ENDLESS if self.is_open else len(self.ids) + 1
        text, audio = (min(each.max_rows, num_rows) for each in (sampling.text, sampling.audio))
        return {"text_min": ENDLESS, "text_max": text, "audio_max": audio}


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
    ) -> Self:
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
        """Append text ids; return the entries of all rows that become known, including recorded codes."""
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

    def entries(self, first: int = 0) -> np.ndarray:
        """Return entries of a slot's tables, whose places are the numbers of the ids; see `Track.entries`."""
        return placed(first, self.ids[first:])

    def entries_after(self, num_rows: int) -> np.ndarray:
        """Return all entries, because rows contain only the numbers of ids."""
        return self.entries()

    def limits(self, sampling: SamplingConfig) -> dict[str, int]:
        """Return the numbers of given rows; they keep the reply from ending before its text."""
        return {"given_first": self.num_first, "given_total": ENDLESS if self.is_open else len(self.ids)}

    def initial_state(self) -> dict[str, int]:
        """Return the number of codes in the first group; see `Track.initial_state`."""
        return {"num_in_group": self.num_before}

    def are_known(self, rows: np.ndarray, last: int) -> bool:
        """Return False if the id of a given row has not arrived; see `Track.are_known`."""
        return not (rows < 0).any()

    def num_known(self, reply: Any) -> int:
        """Return the number of rows that the model may read, assuming that all further rows are given rows."""
        return reply.position + len(self.ids) - reply.num_given if self.is_open else ENDLESS

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


def placed(first: int, ids: np.ndarray) -> np.ndarray:
    """Return consecutive entries of a slot's tables, int32 [n, 1 + K].

    Args:
        first: Place of the first entry.
        ids: Ids, int32 [n, K].
    """
    return np.column_stack([np.arange(first, first + len(ids), dtype=np.int32), ids])


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
    ) -> Self:
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
        """Append words; return the entries that they add to the tables of a slot, int32 [n, 2]."""
        first_token, first_word = len(self.tokens), len(self.words)
        for tokens, padding in unpack_words(ids[:-1] if is_last else ids):
            self.tokens += tokens
            self.waiting.append((len(self.tokens), padding))
        self._append(ids, is_last)
        self._note_known()
        return np.concatenate([self._token_entries(first_token), self._word_entries(first_word)])

    def entries(self, first: int = 0) -> np.ndarray:
        """Return the entries of all tokens, and of the known words from number `first` on; see `Track.entries`."""
        return np.concatenate([self._token_entries(), self._word_entries(first)])

    def entries_after(self, num_rows: int) -> np.ndarray:
        """Return all entries, because words are taken in any row."""
        return self.entries()

    def limits(self, sampling: SamplingConfig) -> dict[str, int]:
        """Return the number of words, ENDLESS while the text is open; the reply cannot end before its text."""
        return {"given_total": ENDLESS if self.is_open else len(self.words)}

    def are_known(self, rows: np.ndarray, last: int) -> bool:
        """Return True, because the rows of the reply contain the ids; see `Track.are_known`."""
        return True

    def unconditional(self, family: Family) -> Track | None:
        """Return None; see `Track.unconditional`."""
        return None

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

    def _token_entries(self, first: int = 0) -> np.ndarray:
        """Return the entries of the tokens from number `first`, int32 [n, 2]."""
        return placed(first, rows_of(self.tokens[first:], 1))

    def _word_entries(self, first: int = 0) -> np.ndarray:
        """Return the entries of the known words from number `first`, int32 [n, 2]."""
        return placed(self.capacity + len(Word._fields) * first, np.array(self.words[first:], np.int32).reshape(-1, 1))

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

    def fill(self, codes: np.ndarray, first: int) -> None:
        """Do nothing, because the rows of the reply contain the ids of both streams."""
