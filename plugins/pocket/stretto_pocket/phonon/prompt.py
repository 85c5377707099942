"""Phonon prompts: Pocket TTS prompts with the text changes and tail lengths of the authors' runtime (ptts 0.4.2)."""

from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.errors import CheckpointError
from stretto.family.base import Family
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import Template
from stretto.family.text import plain_tokenizer
from stretto_pocket.phonon.family import FEW_WORDS, SHORT_TAIL_ROWS, TAIL_ROWS, PhononVocabulary
from stretto_pocket.pocket_tts.prompt import CLOSERS, PocketTemplate, TextPieces

MAX_PIECE_TOKENS = 200
MIN_HALF_TOKENS = 50  # minimum on each side of a mark at which a piece is halved
SENTENCE_MARKS = (".", "!", "?")
CLAUSE_MARKS = (",", ";", ":")


class PhononPieces(TextPieces):
    """Division of a text as in the authors' runtime: whole sentences, which are halved until they are short enough."""

    def cut(self, text: str) -> list[str]:
        """Return the pieces of a text, of at most MAX_PIECE_TOKENS tokens each."""
        return [half for piece in super().cut(text) for half in self._fitted(piece)]

    def parts(self, ids: list[int]) -> list[tuple[int, str]]:
        return [(len(sentence), self.tokenizer.decode(sentence)) for sentence in self.sentences(ids)]

    def _fitted(self, piece: str) -> list[str]:
        """Return a piece, or its halves if it has too many tokens. A single word is halved between characters."""
        words = piece.split()
        middle = len(piece) // 2
        if not middle or len(self.tokenizer.encode(self.prepare(piece))) <= MAX_PIECE_TOKENS:
            return [piece]
        halves = (piece[:middle], piece[middle:])
        if len(words) > 1:
            first = self._first_half(words)
            halves = (" ".join(words[:first]), " ".join(words[first:]))
        return [fitted for half in halves for fitted in self._fitted(half)]

    def _first_half(self, words: list[str]) -> int:
        """Return the number of words before the sentence end nearest to the middle, else clause end, else space."""
        ends = np.cumsum([len(self.tokenizer.encode(word)) for word in words])
        before = ends[:-1]
        after = ends[-1] - before
        is_balanced = np.minimum(before, after) >= MIN_HALF_TOKENS
        cores = [word.rstrip(CLOSERS) for word in words[:-1]]
        marked = [is_balanced & [core.endswith(marks) for core in cores] for marks in (SENTENCE_MARKS, CLAUSE_MARKS)]
        is_place = next((places for places in marked if places.any()), np.ones(len(cores), bool))
        return int(np.where(is_place, np.abs(before - after), np.inf).argmin()) + 1


class PhononTemplate(PocketTemplate):
    """Phonon prompt template."""

    pieces = PhononPieces

    def rewritten(self, text: str) -> str:
        """Return `text` with single spaces in place of white space, and none at its ends."""
        return " ".join(text.split())

    def finished(self, text: str) -> str:
        """Return rewritten `text` with an initial capital, and a full stop after a last letter or digit."""
        text = text[0].upper() + text[1:]
        return f"{text}." if text[-1].isalnum() else text

    def num_tail_rows(self, text: str) -> int:
        """Return the number of frames from the detected end of speech, larger for texts of few words."""
        return SHORT_TAIL_ROWS if len(text.split()) <= FEW_WORDS else TAIL_ROWS


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's tokenizer and codec."""
    vocabulary = PhononVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    tokenizer = plain_tokenizer(checkpoint)
    if len(tokenizer.tokens) > vocabulary.num_text_ids:
        raise CheckpointError(
            f"{checkpoint}: expected at most {vocabulary.num_text_ids} tokens, got {len(tokenizer.tokens)}"
        )
    return PhononTemplate(family, vocabulary, tokenizer, codec)
