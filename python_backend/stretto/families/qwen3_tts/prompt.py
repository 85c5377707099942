"""Prompts of Qwen3-TTS, as its authors' `generate` builds them of embeddings: here of ids, row by row.

    text    instruction   role   pad   pad       pad      pad       pad   bos │ Hello ,   eos pad │ pad pad …   whole
    codec                        think think_bos language think_eos voice pad │ pad   pad pad bos │ f0  f1  …

                                                                              │ Hello │ ,  eos pad pad …    streaming
                                                                              │ bos   │ f0 f1  f2  f3  …

Without a language `nothink` stands for the first marker, and there is none for the language; a described voice has no
row. Read whole, all words come before the first frame; streaming, each goes with a frame (`Family.text_track`).
Layout: `generate` of https://github.com/QwenLM/Qwen3-TTS, qwen_tts/core/models/modeling_qwen3_tts.py.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stretto.codec.base import Codec
from stretto.errors import InvalidRequest
from stretto.families.base import Family, Task
from stretto.families.qwen3_tts.family import Qwen3TtsVocabulary
from stretto.families.registry import VOCABULARY, config_at
from stretto.families.tokenizer import TextTokenizer
from stretto.preprocessing.conversation import Piece
from stretto.preprocessing.manner import PLAIN, Manner
from stretto.preprocessing.prompt import PromptRows, Template
from stretto.preprocessing.rows import stream0_rows
from stretto.preprocessing.subwords import Subwords

CHINESE = "chinese"


class Qwen3TtsTemplate:
    """Writes the prompts of Qwen3-TTS's checkpoints."""

    def __init__(self, family: Family, vocabulary: Qwen3TtsVocabulary, subwords: Subwords):
        self._writer, self._subwords = RowWriter(family, vocabulary), subwords
        self._takes_instructions = vocabulary.takes_instructions

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """The words of the only piece, in the voice of that name or in one that `manner` describes."""
        (piece,) = pieces
        assert piece.text is not None, task.name
        if not piece.text:
            raise InvalidRequest(piece.path, "text of at least one character", "''")
        words = self._subwords.ids(piece.text, piece.path)
        instruction = self._subwords.ids(manner.instruct, "options.instruct") if manner.instruct else []
        head = self._writer.head(instruction if self._takes_instructions else [], voice, manner.language)
        return self._writer.prompt(head, words, manner.is_streaming)


class RowWriter:
    """Writes rows of ids of text and of the codec's vocabulary."""

    def __init__(self, family: Family, vocabulary: Qwen3TtsVocabulary):
        self._layout, self._known = family.layout, vocabulary

    def head(self, instruction: Sequence[int], voice: str | None, language: str | None) -> np.ndarray:
        """The rows before the words: an instruction, the role, language and voice; [n, S]."""
        text, codec = self._known.text, self._known.codec
        turn = [text.im_start, text.user, text.newline, *instruction, text.im_end, text.newline] if instruction else []
        role = [text.im_start, text.assistant, text.newline]
        marks = self._language(voice, language)
        marks += [] if voice is None else [self._known.speakers[voice]]
        beside = [text.pad] * len(marks)
        return np.concatenate(
            [
                stream0_rows(self._layout, [*turn, *role]),
                self._pairs([*beside, text.bos], [*marks, codec.pad]),
            ]
        )

    def prompt(self, head: np.ndarray, words: Sequence[int], is_streaming: bool) -> PromptRows:
        """The prompt after whose last row the first frame is drawn, and the words that go with the frames."""
        text, codec = self._known.text, self._known.codec
        said = [*words, text.eos]
        if is_streaming:
            return PromptRows(np.concatenate([head, self._pairs(said[:1], [codec.bos])]), track=tuple(said[1:]))
        rows = self._pairs([*said, text.pad], [*[codec.pad] * len(said), codec.bos])
        return PromptRows(np.concatenate([head, rows]))

    def _language(self, voice: str | None, language: str | None) -> list[int]:
        """The markers of a language. Who speaks a dialect does so in Chinese, and where no language is asked for."""
        codec, known = self._known.codec, self._known
        dialect = known.dialects.get(voice) if voice is not None else None
        if dialect is not None and language in (None, CHINESE):
            language = dialect
        if language is None:
            return [codec.nothink, codec.think_bos, codec.think_eos]
        return [codec.think, codec.think_bos, known.languages[language], codec.think_eos]

    def _pairs(self, texts: Sequence[int], codes: Sequence[int]) -> np.ndarray:
        """Rows of an id of text and one of the codec's vocabulary each, [n, S]."""
        rows = stream0_rows(self._layout, [self._known.num_text_ids + code for code in codes])
        rows[:, -1] = texts
        return rows


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """The template over a checkpoint's tokenizer."""
    vocabulary = Qwen3TtsVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    return Qwen3TtsTemplate(family, vocabulary, Subwords(TextTokenizer.at(checkpoint), family))
