"""Prompts of Qwen3-TTS, as its authors' `generate` builds them of embeddings: here of ids, row by row.

    text    instruction   role   pad   pad       pad      pad       pad   bos │ Hello ,   eos pad │ pad pad …   whole
    codec                        think think_bos language think_eos voice pad │ pad   pad pad bos │ f0  f1  …

                                                                              │ Hello │ ,  eos pad pad …    streaming
                                                                              │ bos   │ f0 f1  f2  f3  …

                                                                              │ pad   │                     open
                                                                              │ bos   │

Without a language `nothink` stands for the first marker, and there is none for the language; a described voice has no
row. Read whole, all words come before the first frame; streaming, each goes with a frame (`Family.text_track`). Of a
text that is still being written the first word takes the place of a pad, when it comes.

A voice that is cloned has its x-vector in the row of the voice, in the place of a code's embedding. Where it is known
what is said in its recording, the model goes on from that, words and frames:

    text    … bos │ ref0 ref1 Hello , eos pad │ pad pad pad … whole     … bos │ ref0 ref1 Hello ,  eos pad … streaming
    codec   … pad │ pad  pad  pad pad pad bos │ r0  r1  f0  …           … pad │ bos  r0   r1    f0 f1  f2  …
Layout: `generate` of https://github.com/QwenLM/Qwen3-TTS, qwen_tts/core/models/modeling_qwen3_tts.py.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stretto.codec.base import Codec
from stretto.errors import InvalidRequest
from stretto.families.base import Family, Task
from stretto.families.qwen3_tts.family import Qwen3TtsVocabulary
from stretto.families.qwen3_tts.voices import ClonedVoice, ClonedVoices, open_voices
from stretto.families.registry import VOCABULARY, config_at
from stretto.families.tokenizer import TextTokenizer
from stretto.preprocessing.conversation import Piece
from stretto.preprocessing.manner import PLAIN, Manner
from stretto.preprocessing.prompt import PromptRows, Template
from stretto.preprocessing.rows import code_rows, stream0_rows
from stretto.preprocessing.subwords import Subwords, check_text, without_leading_line_ends
from stretto.records.prompt import HeardAudio
from stretto.records.text_part import MAX_PART_CHARS

CHINESE = "chinese"


class Qwen3TtsTemplate:
    """Writes the prompts of Qwen3-TTS's checkpoints. voices: of one that clones them."""

    def __init__(
        self,
        family: Family,
        vocabulary: Qwen3TtsVocabulary,
        subwords: Subwords,
        voices: ClonedVoices | None = None,
    ):
        self._writer, self._subwords, self._voices = RowWriter(family, vocabulary), subwords, voices
        self._takes_instructions = vocabulary.takes_instructions

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """The words of the last piece, in the voice of that name, in one that `manner` describes, or in that of the
        pieces before."""
        *before, piece = pieces
        assert piece.text is not None, task.name
        if manner.is_open:
            check_text(piece.text, piece.path, MAX_PART_CHARS)
        elif not piece.text:
            raise InvalidRequest(piece.path, "text of at least one character", "''")
        words = [] if manner.is_open else self._ids(piece.text, piece.path)
        instruction = self._ids(manner.instruct, "options.instruct") if manner.instruct else []
        recorded = None if self._voices is None else self._recorded(before, self._voices)
        head = self._writer.head(instruction if self._takes_instructions else [], recorded or voice, manner.language)
        if manner.is_open:
            return self._writer.opening(head, recorded)
        return self._writer.prompt(head, words, manner.is_streaming, recorded)

    def _recorded(self, pieces: Sequence[Piece], voices: ClonedVoices) -> ClonedVoice:
        """The voice of a system turn: its audio and, where the turn has any, the words that are said there."""
        recordings = [piece for piece in pieces if piece.text is None]
        if not recordings:
            expected = "a system turn with audio: this model speaks in the voice of a recording"
            raise InvalidRequest("messages", expected, "no voice")
        if recordings[0].pcm is None:
            raise InvalidRequest(recordings[0].path, "a file or samples of a voice", "codes")
        said = [self._ids(piece.text, piece.path) for piece in pieces if piece.text]
        return voices.hear(recordings[0].pcm, said[0] if said else [])

    def _ids(self, text: str, path: str) -> list[int]:
        """Return the ids of `text` without leading line ends.

        The authors' code tokenizes a text together with the role's line end, which line ends would merge with, and
        then cuts the role off.
        """
        return self._subwords.ids(without_leading_line_ends(text), path)


class RowWriter:
    """Writes rows of ids of text and of the codec's vocabulary."""

    def __init__(self, family: Family, vocabulary: Qwen3TtsVocabulary):
        self._layout, self._known = family.layout, vocabulary

    def head(self, instruction: Sequence[int], voice: ClonedVoice | str | None, language: str | None) -> np.ndarray:
        """The rows before the words: an instruction, the role, language and voice; [n, S]. The row of a voice that is
        cloned, the last but one, is a placeholder's."""
        text, codec = self._known.text, self._known.codec
        turn = [text.im_start, text.user, text.newline, *instruction, text.im_end, text.newline] if instruction else []
        role = [text.im_start, text.assistant, text.newline]
        marks = self._language(voice, language)
        if voice is not None:
            marks.append(self._known.speakers[voice] if isinstance(voice, str) else codec.pad)
        beside = [text.pad] * len(marks)
        return np.concatenate(
            [
                stream0_rows(self._layout, [*turn, *role]),
                self._pairs([*beside, text.bos], [*marks, codec.pad]),
            ]
        )

    def prompt(
        self, head: np.ndarray, words: Sequence[int], is_streaming: bool, voice: ClonedVoice | None = None
    ) -> PromptRows:
        """The prompt after whose last row the first frame is drawn, and the words that go with the frames. `voice`: the
        one that is cloned, as in `head`."""
        text, codec = self._known.text, self._known.codec
        said = [*(voice.words if voice else ()), *words, text.eos]
        frames = self._frames(voice)
        track: tuple[int, ...] = ()
        if is_streaming:
            beside = said[: len(frames)]
            frames[: len(beside), -1] = beside
            track = tuple(said[len(frames) :])
            rows = np.concatenate([head, frames])
        else:
            rows = np.concatenate([head, self._pairs(said, [codec.pad] * len(said)), frames])
        return PromptRows(rows, audios=_x_vector(head, voice), track=track, num_reference_rows=len(frames) - 1)

    def opening(self, head: np.ndarray, voice: ClonedVoice | None = None) -> PromptRows:
        """The same before there is a word: the first will stand in the place of the last row's pad.

        InvalidRequest for a voice that goes on from its recording, whose words stand there.
        """
        if voice is not None and voice.codes is not None:
            expected = "whole or streaming, as the recording's words are told"
            raise InvalidRequest("options.text_mode", expected, "open")
        return PromptRows(np.concatenate([head, self._frames(voice)]), audios=_x_vector(head, voice))

    def _frames(self, voice: ClonedVoice | None) -> np.ndarray:
        """The rows of codes before the reply's, [1 + T, S], no word beside them: the begin, and the voice's frames."""
        begin = self._pairs([self._known.text.pad], [self._known.codec.bos])
        if voice is None or voice.codes is None:
            return begin
        frames = code_rows(self._layout, voice.codes)
        frames[:, -1] = self._known.text.pad
        return np.concatenate([begin, frames])

    def _language(self, voice: ClonedVoice | str | None, language: str | None) -> list[int]:
        """The markers of a language. Who speaks a dialect does so in Chinese, and where no language is asked for."""
        codec, known = self._known.codec, self._known
        dialect = known.dialects.get(voice) if isinstance(voice, str) else None
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


def _x_vector(head: np.ndarray, voice: ClonedVoice | None) -> tuple[HeardAudio, ...]:
    return () if voice is None else (HeardAudio(len(head) - 2, 1, voice.x_vector[None]),)


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """The template over a checkpoint's tokenizer and, where it clones voices, its codec and speaker encoder."""
    config = config_at(checkpoint)
    vocabulary = Qwen3TtsVocabulary.from_record(config[VOCABULARY])
    clones = vocabulary.kind == "base"
    voices = open_voices(checkpoint, codec, device, config["hidden_size"]) if clones else None
    return Qwen3TtsTemplate(family, vocabulary, Subwords(TextTokenizer.at(checkpoint), family), voices)
