"""Pronunciation dictionaries of a family, and the mapping of replaced words to the original text."""

from collections import deque
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from typing import Any

from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.family.base import Family
from stretto.family.plugin import plugin
from stretto.records.prompt import SourceWord
from stretto_contract.lexicon_files import read_lexicon_file
from stretto_contract.pronunciation import Dictionary, DictionaryEntry, InvalidEntry, Replacement, read_entries

OPTION = "options.pronunciations"


def alphabets(family: Family) -> tuple[str, ...]:
    """Return the phonetic alphabets that a family reads."""
    family_plugin = plugin(family.name)
    return () if family_plugin is None else tuple(family_plugin.phonemes)


def spelling(entry: DictionaryEntry, family: Family) -> str:
    """Return the text that the model reads in place of the entry's word; raise ValueError if there is none."""
    if not entry.alphabet:
        return entry.spelling
    family_plugin = plugin(family.name)
    write = None if family_plugin is None else family_plugin.phonemes.get(entry.alphabet)
    if write is None:
        readable = alphabets(family)
        read = f"reads {' and '.join(readable)} only" if readable else "reads no phonemes"
        raise ValueError(f"a spelling (this model {read}), got {entry.alphabet}")
    written: str = write(entry.spelling)
    return written


def read_spellings(record: Any, family: Family) -> dict[str, str]:
    """Return the spelling that the model reads for each word of `options.pronunciations`, or raise InvalidRequest."""
    spellings = dict[str, str]()
    try:
        entries = read_entries(record)
    except InvalidEntry as error:
        raise InvalidRequest(f"{OPTION}.{error.path}" if error.path else OPTION, error.expected, error.got) from None
    for entry in entries:
        try:
            spellings[entry.word] = spelling(entry, family)
        except ValueError as error:
            expected, _, got = str(error).partition(", got ")
            raise InvalidRequest(f"{OPTION}.{shown(entry.word)[1:-1]}", expected, got) from None
    return spellings


def server_dictionary(path: Path | None, family: Family) -> Dictionary:
    """Return the dictionary in a server's file, empty without one; raise CheckpointError if it is invalid.

    Entries with phonemes that the family does not read have no effect, because one file may serve several models.
    """
    spellings = dict[str, str]()
    try:
        entries = () if path is None else read_lexicon_file(path)
        readable = [entry for entry in entries if not entry.alphabet or entry.alphabet in alphabets(family)]
        spellings |= {entry.word: spelling(entry, family) for entry in readable}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Dictionary(spellings)


class SourceWords:
    """Mapping from words of the text to speak to those of the original text, in order.

    The source of a word consists of the words that it replaces and the part of it that was not replaced. If several
    words replace a text, all of them have the same source, with the text around the replacement: of "(ess queue ell)s",
    all words have the source "(SQL)s".
    """

    def __init__(self) -> None:
        self._changes = deque[Replacement]()
        self._shift = 0  # from positions in the text to speak to positions in the original text
        self._sources = list[SourceWord]()
        self._first = 0  # index of the first word that has the last source

    def read(self, words: Iterable[SourceWord], changes: Iterable[Replacement]) -> tuple[SourceWord, ...]:
        """Return the words of the original text so far, one for each word of the text to speak.

        Args:
            words: Next words of the text to speak. The first ones may extend the sources of earlier words.
            changes: Further replaced parts of the text, in order.
        """
        self._changes.extend(changes)
        for word in words:
            self._add(self._source(word))
        return tuple(self._sources)

    def _add(self, source: SourceWord) -> None:
        if not self._sources or source.start >= self._sources[-1].end:
            self._first = len(self._sources)
            self._sources.append(source)
            return
        last = self._sources[-1]
        self._sources.append(last)
        if source.end > last.end:
            ending = source.word[last.end - source.start :]
            num_words = len(self._sources) - self._first
            self._sources[self._first :] = [SourceWord(last.word + ending, last.start, source.end)] * num_words

    def _source(self, word: SourceWord) -> SourceWord:
        while self._changes and self._changes[0].end <= word.start:
            change = self._changes.popleft()
            self._shift = change.source_end - change.end
        text = ""
        at = word.start
        start = word.start + self._shift
        end = word.end + self._shift
        for change in takewhile(lambda change: change.start < word.end, self._changes):
            text += word.word[at - word.start : max(0, change.start - word.start)] + change.word
            at = min(change.end, word.end)
            start = change.source_start if change.start <= word.start else start
            end = word.end + change.source_end - change.end if change.end < word.end else change.source_end
        return SourceWord(text + word.word[at - word.start :], start, end)
