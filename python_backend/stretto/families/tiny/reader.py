"""Conversion of the bundled model's text segments to readable text: phonemes, or a transcript."""

from collections.abc import Sequence
from pathlib import Path

from stretto.families.base import Family
from stretto.families.text import TextCodec, TextReader
from stretto.families.tiny import family as tiny

PAUSE = tiny.FIRST_PHONEME + tiny.PHONEMES.index("pau")


class _WordReader:
    """Reader that joins tokens to words and returns the text word by word, separated by spaces."""

    def __init__(self, joiner: str, first: int | None = None):
        self._joiner, self._waits_for = joiner, first
        self._word: list[str] = []
        self._has_text = False

    def push(self, token_id: int) -> str:
        if self._waits_for is not None:
            if token_id == self._waits_for:
                self._waits_for = None
            return ""
        if token_id in tiny.SPACE:
            return self.end()
        if token_id == PAUSE:
            word = self.end()
            self._word = [","]
            return word + self.end()
        self._word.append(_spelling(token_id))
        return ""

    def end(self) -> str:
        if not self._word:
            return ""
        text = " " * self._has_text + self._joiner.join(self._word)
        self._word, self._has_text = [], True
        return text


def _spelling(token_id: int) -> str:
    if token_id in tiny.SPOKEN:
        return tiny.PHONEMES[token_id - tiny.FIRST_PHONEME]
    return tiny.CHARACTERS[token_id - tiny.FIRST_CHARACTER]


def _tiny_reader(task: str) -> TextReader:
    """Return a reader for a task.

    Phonemes are written as `dh-ax b-er-ch`, with `,` for a pause. Only the characters after the separator are returned
    for a transcript.
    """
    return _WordReader("", tiny.SEPARATOR) if task == "asr" else _WordReader("-")


def _tiny_words(token_ids: Sequence[int]) -> list[int | None]:
    words: list[int | None] = []
    count, is_inside = 0, False
    for token_id in token_ids:
        if token_id not in tiny.SPOKEN or token_id == PAUSE:
            count, is_inside = count + is_inside, False
            if token_id == PAUSE:
                words.append(None)
        else:
            words.append(count)
            is_inside = True
    return words


TEXT_CODEC = TextCodec(_tiny_reader, _tiny_words)


def open_text_codec(family: Family, checkpoint: Path) -> TextCodec:
    """Return the text codec; it reads no file."""
    return TEXT_CODEC
