"""Magpie prompts: the rows of the voice, a row of initial ids, and the text as the condition of all rows."""

from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.errors import InvalidRequest, shown
from stretto.family.base import Family, Task
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, stream0_rows
from stretto.family.text import check_text
from stretto.records.prompt import Condition
from stretto.untrusted_files import json_object
from stretto_magpie.family import MagpieVocabulary
from stretto_magpie.text import Texts

ENGLISH = "en"
NO_VECTORS = np.zeros((0, 1), np.float32)


class MagpieTemplate:
    """Magpie prompt template."""

    def __init__(self, family: Family, vocabulary: MagpieVocabulary, texts: Texts):
        self._family = family
        self._vocabulary = vocabulary
        self._texts = texts
        self._language = ENGLISH if ENGLISH in texts.languages else texts.languages[0]
        self._codes = {code.lower(): code for code in texts.languages}

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows of the voice, with the ids of the text as condition."""
        (piece,) = pieces
        text = piece.text or ""
        check_text(text, piece.path, self._family.max_text_chars)
        language = self._codes[manner.language or self._language]
        ids = self._texts.encode(text, language)
        if not text.strip() or not ids:
            raise InvalidRequest(piece.path, "text with a character that the model can speak", shown(text))
        most = self._vocabulary.max_text_tokens - 1
        if len(ids) > most:
            raise InvalidRequest(piece.path, f"at most {most} tokens in {language}", f"{len(ids)}")
        end = self._vocabulary.num_text_ids - 1
        return PromptRows(self._rows(voice), condition=Condition((*ids, end), NO_VECTORS))

    def _rows(self, voice: str | None) -> np.ndarray:
        assert voice is not None, "a checkpoint has named voices"
        vocabulary = self._vocabulary
        layout = self._family.layout
        first = vocabulary.first_voice + vocabulary.voices.index(voice) * vocabulary.voice_rows
        rows = stream0_rows(layout, range(first, first + vocabulary.voice_rows + 1))
        rows[-1] = layout.initial
        return rows


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's dictionaries."""
    vocabulary = MagpieVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    return MagpieTemplate(family, vocabulary, Texts(json_object(checkpoint / "tokenizer.json")))
