"""Conversion of a family's text token ids to readable text."""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stretto.families.base import Family
from stretto.families.registry import module_of
from stretto.families.text_stream import SubwordStream
from stretto.families.tokenizer import FILE, TextTokenizer


class TextReader(Protocol):
    """Incremental reader of one text segment."""

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` adds; empty if it completes no character or word."""
        ...

    def end(self) -> str:
        """Return the remaining text at the end of the segment."""
        ...


@dataclass(frozen=True)
class TextCodec:
    """Text conversion of a family, with the assignment of alignment entries to words.

    Attributes:
        reader: Function that creates a reader for a task.
        words: Function that returns the word index of each spoken token of a text segment; None for a pause.
        stream: Function that creates a converter of streamed text to ids; None without a tokenizer.
    """

    reader: Callable[[str], TextReader]
    words: Callable[[Sequence[int]], list[int | None]]
    stream: Callable[[], SubwordStream] | None = None


class _SubwordReader:
    """Reader of subwords that returns a character once its last byte has arrived."""

    def __init__(self, tokenizer: TextTokenizer, subwords: range):
        self._tokenizer, self._subwords = tokenizer, subwords
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        if token_id not in self._subwords:
            return ""
        return self._decoder.decode(self._tokenizer.bytes_of(token_id - self._subwords.start))

    def end(self) -> str:
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class _SilentReader:
    """Reader for families whose text is not readable."""

    def push(self, token_id: int) -> str:
        return ""

    def end(self) -> str:
        return ""


def _no_words(token_ids: Sequence[int]) -> list[int | None]:
    return [None] * len(token_ids)


SILENT = TextCodec(lambda task: _SilentReader(), _no_words)


def get_text_codec(family: str) -> TextCodec:
    """Return the text codec of a family without a tokenizer; one that returns no text if the family has no reader."""
    module = module_of(family, "reader")
    return SILENT if module is None else module.TEXT_CODEC


def subword_codec(tokenizer: TextTokenizer, subwords: range) -> TextCodec:
    """Return the text codec of a family whose text ids are a tokenizer's ids plus `subwords.start`."""
    return TextCodec(
        lambda task: _SubwordReader(tokenizer, subwords), _no_words, lambda: SubwordStream(tokenizer, subwords)
    )


def load_text_codec(family: Family, checkpoint: Path) -> TextCodec:
    """Return the text codec of `family`, with the tokenizer in its checkpoint's folder.

    A checkpoint of random weights has no tokenizer; its codec returns no text.

    Raises:
        CheckpointError: If the tokenizer cannot be read.
    """
    if family.subwords is None or not (checkpoint / FILE).exists():
        return get_text_codec(family.name)
    return subword_codec(TextTokenizer.at(checkpoint), family.subwords)
