"""What a family's text tokens say: from token ids to words a reader may see."""

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
    """Reads one text segment, token by token."""

    def push(self, token_id: int) -> str:
        """What `token_id` adds to the text; empty where it only makes up part of a word."""
        ...

    def end(self) -> str:
        """What is left when the segment ends."""
        ...


@dataclass(frozen=True)
class TextCodec:
    """How a family's text segment is read, and which word each entry of its script belongs to.

    reader: a fresh reader for a task. words: for each spoken token of a text segment, the index of its word, None for
    a pause. stream: the ids of a text that comes in pieces; None without a tokenizer.
    """

    reader: Callable[[str], TextReader]
    words: Callable[[Sequence[int]], list[int | None]]
    stream: Callable[[], SubwordStream] | None = None


class _SubwordReader:
    """Reads subwords: text leaves token by token, and a character once its last byte has come."""

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
    """For a family whose text nobody reads."""

    def push(self, token_id: int) -> str:
        return ""

    def end(self) -> str:
        return ""


def _no_words(token_ids: Sequence[int]) -> list[int | None]:
    return [None] * len(token_ids)


SILENT = TextCodec(lambda task: _SilentReader(), _no_words)


def get_text_codec(family: str) -> TextCodec:
    """The text codec of a family that needs no tokenizer; one that says nothing where the family has none."""
    module = module_of(family, "reader")
    return SILENT if module is None else module.TEXT_CODEC


def subword_codec(tokenizer: TextTokenizer, subwords: range) -> TextCodec:
    """The text codec of a family whose text is a tokenizer's, its ids beginning where `subwords` does."""
    return TextCodec(
        lambda task: _SubwordReader(tokenizer, subwords), _no_words, lambda: SubwordStream(tokenizer, subwords)
    )


def load_text_codec(family: Family, checkpoint: Path) -> TextCodec:
    """The text codec of `family` with the tokenizer in its checkpoint's folder.

    A checkpoint of random weights has no tokenizer and says nothing; CheckpointError where it has one that cannot be
    read.
    """
    if family.subwords is None or not (checkpoint / FILE).exists():
        return get_text_codec(family.name)
    return subword_codec(TextTokenizer.at(checkpoint), family.subwords)
