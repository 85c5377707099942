"""Phonon prompts: those of Pocket TTS, with the text changes and the end of the authors' runtime (ptts 0.4.2)."""

from pathlib import Path

from stretto.codecs.base import Codec
from stretto.errors import CheckpointError
from stretto.families.base import Family
from stretto.families.phonon.family import FEW_WORDS, SHORT_TAIL_ROWS, TAIL_ROWS, PhononVocabulary
from stretto.families.plugin import VOCABULARY, config_at
from stretto.families.pocket_tts.prompt import PocketTemplate
from stretto.families.prompting import Template
from stretto.families.text import plain_tokenizer


class PhononTemplate(PocketTemplate):
    """Phonon prompt template."""

    max_sentence_tokens = 200  # the authors' runtime keeps longer sentences whole, too, than Pocket TTS's

    def rewritten(self, text: str) -> str:
        """Return `text` with single spaces in place of white space."""
        return " ".join(text.split())

    def finished(self, text: str) -> str:
        """Return rewritten `text` with an initial capital, and a full stop after a last letter or digit."""
        text = text[0].upper() + text[1:]
        return f"{text}." if text[-1].isalnum() else text

    def num_tail_rows(self, text: str) -> int:
        """Return the number of frames from the detected end of speech, which is larger for texts of few words."""
        return SHORT_TAIL_ROWS if len(text.split()) <= FEW_WORDS else TAIL_ROWS


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's tokenizer and codec."""
    known, tokenizer = PhononVocabulary.from_record(config_at(checkpoint)[VOCABULARY]), plain_tokenizer(checkpoint)
    if len(tokenizer.tokens) > known.num_text_ids:
        raise CheckpointError(
            f"{checkpoint}: expected at most {known.num_text_ids} tokens, got {len(tokenizer.tokens)}"
        )
    return PhononTemplate(family, known, tokenizer, codec)
