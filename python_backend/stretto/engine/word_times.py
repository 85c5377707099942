"""Word times that the model itself reports, assigned to the words of the request's text."""

import sys
from collections.abc import Sequence

from stretto.family.text import TextCodec
from stretto.records.chunk import WordMark
from stretto.records.prompt import SourceWord


class WordTimes:
    """Queue of the words of a reply that have begun but have not been sent yet.

    Args:
        sources: For each of `words`, the word of the request's text; empty if unknown.
    """

    def __init__(self, words: tuple[str, ...], sources: tuple[SourceWord, ...], codec: TextCodec, task: str):
        self._words = words
        self._sources = sources
        self._codec = codec
        self._task = task
        self._marks: list[WordMark] = []
        self._timed = list[int | SourceWord]()  # words with a time; indices of `words` if their sources are unknown
        self._num_taken = 0  # number of words that the model has asked for
        self._word_of: list[int | None] | None = None  # index of the word of each spoken token

    def mark_token(self, number: int, token_ids: Sequence[int], frame: int) -> None:
        """Record the word, or the pause, that begins with a spoken token of the generated text.

        Args:
            number: Index of the token among the spoken ones (`DrawRules.word_column`).
        """
        if self._word_of is None:
            self._word_of = self._codec.matched(token_ids, self._words)
        index = self._word_of[number]
        if number and self._word_of[number - 1] == index:
            return
        if index is None:
            self._marks.append(WordMark(None, frame))
        else:
            self._mark(index, frame)

    def mark_taken(self, token_ids: Sequence[int], frame: int) -> None:
        """Record that the next word, which consists of `token_ids`, begins at `frame`."""
        if self._num_taken < len(self._words):
            self._mark(self._num_taken, frame)
        else:  # in a text that is still being written
            self._marks.append(WordMark(self._codec.spelled(self._task, token_ids), frame))
        self._num_taken += 1

    def _mark(self, index: int, frame: int) -> None:
        """Record that a spoken word begins at `frame`, unless its word of the text has already begun."""
        source = self._sources[index] if self._sources else None
        key = index if source is None else source
        if self._timed[-1:] == [key]:
            return
        self._timed.append(key)
        if source is None:
            self._marks.append(WordMark(self._words[index], frame))
        else:
            self._marks.append(WordMark(source.word, frame, place=(source.start, source.end)))

    def pop(self, before: int = sys.maxsize) -> list[WordMark]:
        """Remove and return the words that begin before a frame."""
        num_words = sum(mark.frame < before for mark in self._marks)
        popped = self._marks[:num_words]
        self._marks = self._marks[num_words:]
        return popped

    @property
    def untimed(self) -> tuple[str, ...]:
        """Words of the text whose beginning is not known so far, in order."""
        timed = set(self._timed)
        if self._sources:
            return tuple(word.word for word in dict.fromkeys(self._sources) if word not in timed)
        return tuple(word for index, word in enumerate(self._words) if index not in timed)
