"""Conversion of Moshi ids, which are pieces of words and many pads, to text."""

import codecs
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from stretto.errors import CheckpointError
from stretto.family.base import Family
from stretto.family.text import TextCodec, plain_tokenizer
from stretto_kyutai.kyutai_stt.family import PAD

SPACE = "▁"  # represents a space in SentencePiece pieces
BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a piece that represents one byte of a character


class PieceReader:
    """Reader that returns the text of each piece immediately, as the authors' server does.

    Pads and control ids have no text.
    """

    def __init__(self, tokens: Mapping[int, str]):
        self._tokens = tokens
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._has_text = False

    def push(self, token_id: int) -> str:
        if token_id <= PAD:  # 0: a word begins next; 1 and 2: a turn begins or ends; 3: nothing
            return ""
        piece = self._tokens[token_id]
        if byte := BYTE.fullmatch(piece):
            text = self._bytes.decode(bytes.fromhex(byte[1]))
        else:
            text = self._bytes.decode(b"", final=True) + piece.replace(SPACE, " ")
        if not self._has_text:
            text = text.lstrip(" ")
        self._has_text = self._has_text or bool(text)
        return text

    def end(self) -> str:
        return self._bytes.decode(b"", final=True)


def open_text_codec(family: Family, checkpoint: Path) -> TextCodec:
    """Return the text codec that uses the checkpoint's tokenizer, which is of either kind."""
    text = family.layout.audio[0]
    tokens = plain_tokenizer(checkpoint).tokens
    if len(tokens) != len(text):
        raise CheckpointError(f"{checkpoint}: expected {len(text)} tokens, got {len(tokens)}")

    def no_words(token_ids: Sequence[int]) -> list[int | None]:
        return [None] * len(token_ids)  # text is generated alongside the frames, without an alignment

    return TextCodec(lambda task: PieceReader(tokens), no_words)
