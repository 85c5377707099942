"""Conversion of Kyutai STT ids to words and their times.

The pieces up to the next END_PAD or PAD form a word. An END_PAD marks a time at which the previous word ends and the
next word begins. Several words may occur between two such marks. If no mark follows the last word, it ends with the
recording.
"""

from collections.abc import Sequence
from pathlib import Path

from stretto.errors import CheckpointError
from stretto.family.base import Family
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.text import PlainTokenizer, TextCodec, plain_tokenizer
from stretto.records.chunk import WordMark
from stretto_kyutai.kyutai_stt.family import END_PAD, FRAME_RATE, PAD, SttVocabulary


class WordReader:
    """Reader that returns the text word by word, and the times of words once they are known."""

    def __init__(self, tokenizer: PlainTokenizer, vocabulary: SttVocabulary):
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._pieces: list[int] = []
        self._open: list[tuple[str, int]] = []  # words whose end is unknown, with their first frame
        self._marks: list[WordMark] = []
        self._begun: list[WordMark] = []
        self._row = self._border = 0
        self._has_text = False

    def push(self, token_id: int) -> str:
        text = ""
        if token_id in (END_PAD, PAD):
            text = self._complete()
        else:
            self._pieces.append(token_id)
        self._row += 1
        if token_id == END_PAD:
            self._close(self._row - self._vocabulary.delay_rows - self._vocabulary.prefix_rows)
        return text

    def end(self) -> str:
        text = self._complete()
        vocabulary = self._vocabulary
        num_silent = int((vocabulary.prefix_s + vocabulary.flush_s) * FRAME_RATE)
        self._close(self._row - 1 - num_silent)
        return text

    def pop_marks(self) -> list[WordMark]:
        marks = self._marks
        self._marks = []
        return marks

    def pop_begun(self) -> list[WordMark]:
        begun = self._begun
        self._begun = []
        return begun

    @property
    def num_transcribed(self) -> int:
        return max(0, self._row - self._vocabulary.delay_rows - self._vocabulary.prefix_rows)

    def _complete(self) -> str:
        """Complete the word formed by the pending pieces, and return its text."""
        word = self._tokenizer.decode(self._pieces).strip() if self._pieces else ""
        self._pieces = []
        if not word:
            return ""
        self._open.append((word, self._border))
        self._begun.append(WordMark(word, self._border))
        text = " " * self._has_text + word
        self._has_text = True
        return text

    def _close(self, frame: int) -> None:
        self._border = max(frame, self._border)
        self._marks += [WordMark(word, first, self._border) for word, first in self._open]
        self._open = []


def open_text_codec(family: Family, checkpoint: Path) -> TextCodec:
    """Return the text codec that uses the checkpoint's tokenizer, which is of either kind."""
    vocabulary = SttVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    tokenizer = plain_tokenizer(checkpoint)
    if len(tokenizer.tokens) != vocabulary.num_text_ids:
        raise CheckpointError(f"{checkpoint}: expected {vocabulary.num_text_ids} tokens, got {len(tokenizer.tokens)}")

    def no_words(token_ids: Sequence[int]) -> list[int | None]:
        return [None] * len(token_ids)  # the model generates no speech whose words could be aligned

    return TextCodec(lambda task: WordReader(tokenizer, vocabulary), no_words)
