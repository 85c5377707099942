"""Track of the words of a reply, which the model requests one by one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.tracks import ENDLESS, Track, placed, rows_of
from stretto.family.base import Family
from stretto.records.sampling import SamplingConfig
from stretto_kyutai.kyutai_tts.mechanism.script import ScriptedText, WordScript, unpack_words


class TokenizedWord(NamedTuple):
    """Word of a text, given as positions in the list of the text's tokens.

    Attributes:
        end: Position after the word's last token; its first token follows the previous word.
        padding: Minimum number of rows without a new word after this word.
        ahead_start: Position of the first token of the word that the second stream shows in advance.
        ahead_end: Position after the last token of that word; `ahead_start` if there is none.
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
        tokens: Tokens of all words, one after the other.
        words: Known words, in order.
        num_rows: Minimum number of rows for the first n known words, by n: from each row that takes a word to the row
            that may take the next one.
        waiting: End and padding of each word that has arrived but is not known yet.
        capacity: Number of tokens, and of words, for which a slot has room.
    """

    script: WordScript = field(default_factory=WordScript)
    tokens: list[int] = field(default_factory=list)
    words: list[TokenizedWord] = field(default_factory=list)
    num_rows: list[int] = field(default_factory=lambda: [0])
    waiting: list[tuple[int, int]] = field(default_factory=list)
    capacity: int = 0

    @classmethod
    def begin(cls, text: ScriptedText, rules: SegmentRules, first_row: int, ids: Sequence[int], is_open: bool) -> Self:
        """Return the track of a reply that begins with row `first_row`.

        Args:
            ids: Packed words, with the end id if the text is complete.
        """
        second = rules.family.track_streams
        pad_id = rules.family.layout.pad_id
        track = cls(
            slice(second.start - 1, second.stop - 1), first_row, rows_of((), 1), pad_id, is_live=is_open, is_open=True,
            script=text.script, capacity=rules.max_model_len,
        )  # fmt: skip
        track.extend(ids, not is_open)
        return track

    def extend(self, ids: Sequence[int] | np.ndarray, is_last: bool) -> np.ndarray:
        """Append words, and return the entries that they add to the tables of a slot, int32 [n, 2]."""
        first_token = len(self.tokens)
        first_word = len(self.words)
        for tokens, padding in unpack_words(ids[:-1] if is_last else ids):
            self.tokens += tokens
            self.waiting.append((len(self.tokens), padding))
        self.append(ids, is_last)
        self._note_known()
        return np.concatenate([self._token_entries(first_token), self._word_entries(first_word)])

    def entries(self, first: int = 0) -> np.ndarray:
        """Return the entries of all tokens, and of the known words from number `first` on."""
        return np.concatenate([self._token_entries(), self._word_entries(first)])

    def entries_after(self, num_rows: int) -> np.ndarray:
        """Return all entries, because words are taken in any row."""
        return self.entries()

    def limits(self, sampling: SamplingConfig) -> dict[str, int]:
        """Return the number of words, or ENDLESS while the text is open, so that no reply ends before its text."""
        return {"track_total": ENDLESS if self.is_open else len(self.words)}

    def are_known(self, rows: np.ndarray, last: int) -> bool:
        """Return True, because the reply's own rows contain the ids."""
        return True

    def unconditional(self, family: Family) -> Track | None:
        return None

    def _note_known(self) -> None:
        """Move the first words of `waiting` to `words`, as long as the words to show in advance are known."""
        num_moved = 0
        for index, (end, padding) in enumerate(self.waiting):
            begin = self.words[-1].end if self.words else 0
            ahead = self._ahead(index) if self.script.ahead and end > begin else (end, end)
            if ahead is None:
                break
            self.words.append(TokenizedWord(end, padding, *ahead))
            self.num_rows.append(self.num_rows[-1] + self._num_rows(begin, end, padding))
            num_moved += 1
        del self.waiting[:num_moved]

    def _ahead(self, index: int) -> tuple[int, int] | None:
        """Return the indices of the word `script.ahead` words after a waiting word; None while it is not known."""
        begin = self.waiting[index][0]
        left = self.script.ahead
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
        return placed(
            self.capacity + len(TokenizedWord._fields) * first, np.array(self.words[first:], np.int32).reshape(-1, 1)
        )

    def _num_rows(self, begin: int, end: int, padding: int) -> int:
        """Return the minimum number of rows from a row that takes a word to the next row that may."""
        if begin == end:
            return max(1, padding)
        return 1 + max(self.rows_of_tokens(begin + bool(self.script.ahead), end), padding)

    def rows_of_tokens(self, begin: int, end: int) -> int:
        """Return the number of rows that tokens [begin, end) take, without the row of the request."""
        num_rows = 0
        while begin < end:
            begin += 2 if self.script.ahead and self.tokens[begin] == self.script.new_id else 1
            num_rows += 1
        return num_rows

    def word_tokens(self, number: int) -> list[int]:
        """Return the tokens of a known word; empty for a break."""
        return self.tokens[self.words[number - 1].end if number else 0 : self.words[number].end]

    def num_known(self, reply: Any) -> int:
        """Return the number of rows after which the model may need a word that has not arrived."""
        if not self.is_open:
            return ENDLESS
        _, forced, main_at, main_end, _, _, taken, _ = reply.own_values
        num_rows = self.num_rows[-1] - self.num_rows[taken]  # of the words that are known and not taken
        num_rows += max(self.rows_of_tokens(main_at, main_end), forced)
        return reply.position + num_rows - 1

    def fill(self, codes: np.ndarray, first: int) -> None:
        """Do nothing, because the rows of the reply contain the ids of both streams."""
