"""Qwen3-TTS prompts. The authors' `generate` builds them from embeddings; here they are rows of ids.

    text    instruction   role   pad   pad       pad      pad       pad   bos │ Hello ,   eos pad │ pad pad …   whole
    codec                        think think_bos language think_eos voice pad │ pad   pad pad bos │ f0  f1  …

                                                                              │ Hello │ ,  eos pad pad …    streaming
                                                                              │ bos   │ f0 f1  f2  f3  …

                                                                              │ pad   │                     open
                                                                              │ bos   │

If no language is set, `nothink` replaces the first marker and the language has no row. A described voice has no row.
In mode `whole`, all words precede the first frame. In mode `streaming`, each word goes with a frame
(`Family.text_track`). In mode `open`, for a text that is still being written, the first word replaces a pad when it
arrives.

The x-vector of a cloned voice is in the voice's row, and replaces a code's embedding. If the transcript of the
recording is known, the model continues from its words and frames:

    text    … bos │ ref0 ref1 Hello , eos pad │ pad pad pad … whole     … bos │ ref0 ref1 Hello ,  eos pad … streaming
    codec   … pad │ pad  pad  pad pad pad bos │ r0  r1  f0  …           … pad │ bos  r0   r1    f0 f1  f2  …

The layout follows `generate` in https://github.com/QwenLM/Qwen3-TTS, qwen_tts/core/models/modeling_qwen3_tts.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.encoders.x_vector import FOLDER, SAMPLE_RATE, SpeakerEncoder, load_speaker_encoder
from stretto.errors import CheckpointError, InvalidRequest
from stretto.families.qwen3_tts.family import Qwen3TtsVocabulary
from stretto.family.base import Family, Task
from stretto.family.encoded_voices import CachedEncoder
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, code_rows, stream0_rows
from stretto.family.text import Subwords, TextTokenizer, check_text, without_leading_line_ends
from stretto.records.prompt import MAX_PART_CHARS, InputAudio


@dataclass(frozen=True, slots=True, eq=False)
class ClonedVoice:
    """Voice cloned from a recording, as used in a prompt.

    Attributes:
        x_vector: x-vector, float32 [H].
        words: Text ids of the recording's transcript; the model continues from them and from `codes`. If empty, the
            prompt contains only the x-vector.
        codes: Codes of the recording, [K, T]; None if there is no transcript.
    """

    x_vector: np.ndarray
    words: tuple[int, ...] = ()
    codes: np.ndarray | None = None


class ClonedVoices:
    """Converter of recordings to cloned voices, with caches keyed by the samples of a recording."""

    def __init__(self, codec: Codec, speaker: SpeakerEncoder):
        self._codes = CachedEncoder(codec.encode)
        self._x_vectors = CachedEncoder(speaker.encode)

    def encode(self, pcm: np.ndarray, words: Sequence[int]) -> ClonedVoice:
        """Return the voice of a recording, float32 [n] at 24 kHz, with the text ids of its transcript, if known."""
        x_vector = self._x_vectors.encode(pcm)
        return ClonedVoice(x_vector, tuple(words), self._codes.encode(pcm)) if words else ClonedVoice(x_vector)


def open_voices(checkpoint: Path, codec: Codec, device: str, hidden_size: int) -> ClonedVoices:
    """Load a checkpoint's speaker encoder, and add the codec's; raise CheckpointError if one does not fit the model."""
    speaker = load_speaker_encoder(checkpoint, device)
    if speaker is None:
        raise CheckpointError(
            f"{checkpoint / FOLDER}: expected a speaker encoder, because the model clones voices, got none"
        )
    if codec.spec.sample_rate != SAMPLE_RATE:
        raise CheckpointError(f"{checkpoint}: expected a codec of {SAMPLE_RATE} Hz, got {codec.spec.sample_rate}")
    if (width := speaker.config.enc_dim) != hidden_size:
        expected = f"a speaker encoder of the model's width, {hidden_size}"
        raise CheckpointError(f"{checkpoint / FOLDER}: expected {expected}, got {width}")
    return ClonedVoices(codec, speaker)


CHINESE = "chinese"


class Qwen3TtsTemplate:
    """Qwen3-TTS prompt template; `voices` is required for a checkpoint that clones voices."""

    def __init__(
        self,
        family: Family,
        vocabulary: Qwen3TtsVocabulary,
        subwords: Subwords,
        voices: ClonedVoices | None = None,
    ):
        self._writer = RowWriter(family, vocabulary)
        self._subwords = subwords
        self._voices = voices
        self._takes_instructions = vocabulary.takes_instructions
        self._silent_frames = vocabulary.silent_frames

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the prompt for the last text, in a recorded voice, `voice`, or the one that `manner` describes."""
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
            rows = self._writer.opening(head, recorded)
        else:
            rows = self._writer.prompt(head, words, manner.is_streaming, recorded)
        if recorded is None and voice is not None and not instruction:
            return replace(rows, num_silent_frames=self._silent_frames)
        return rows

    def _recorded(self, pieces: Sequence[Piece], voices: ClonedVoices) -> ClonedVoice:
        """Return the voice in a system turn: its audio and, if the turn has text, the transcript."""
        recordings = [piece for piece in pieces if piece.text is None]
        if not recordings:
            expected = "a system turn with audio (this model clones the voice of a recording)"
            raise InvalidRequest("messages", expected, "none")
        if recordings[0].pcm is None:
            raise InvalidRequest(recordings[0].path, "a voice recording as a file or samples", "codes")
        transcripts = [self._ids(piece.text, piece.path) for piece in pieces if piece.text]
        return voices.encode(recordings[0].pcm, transcripts[0] if transcripts else [])

    def _ids(self, text: str, path: str) -> list[int]:
        """Return the ids of `text` without leading line ends.

        The authors' code tokenizes a text together with the line end after the role, which would merge with leading
        line ends, and then removes the role.
        """
        return self._subwords.ids(without_leading_line_ends(text), path)


class RowWriter:
    """Writer of rows with text ids and codec-vocabulary ids."""

    def __init__(self, family: Family, vocabulary: Qwen3TtsVocabulary):
        self._layout = family.layout
        self._vocabulary = vocabulary

    def head(self, instruction: Sequence[int], voice: ClonedVoice | str | None, language: str | None) -> np.ndarray:
        """Return the rows before the words, [n, S]: instruction, role, language and voice.

        For a cloned voice, the second-to-last row is a placeholder for the x-vector.
        """
        text = self._vocabulary.text
        codec = self._vocabulary.codec
        turn = [text.im_start, text.user, text.newline, *instruction, text.im_end, text.newline] if instruction else []
        role = [text.im_start, text.assistant, text.newline]
        marks = self._language(voice, language)
        if voice is not None:
            marks.append(self._vocabulary.speakers[voice] if isinstance(voice, str) else codec.pad)
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
        """Return the prompt up to the row before the first frame, and the words that are read with the frames.

        Args:
            is_streaming: True if words are read with the frames; False if all of them precede the first frame.
        """
        text = self._vocabulary.text
        codec = self._vocabulary.codec
        text_ids = [*(voice.words if voice else ()), *words, text.eos]
        frames = self._frames(voice)
        track: tuple[int, ...] = ()
        if is_streaming:
            beside = text_ids[: len(frames)]
            frames[: len(beside), -1] = beside
            track = tuple(text_ids[len(frames) :])
            rows = np.concatenate([head, frames])
        else:
            rows = np.concatenate([head, self._pairs(text_ids, [codec.pad] * len(text_ids)), frames])
        return PromptRows(rows, audios=_x_vector(head, voice), track=track, num_reference_rows=len(frames) - 1)

    def opening(self, head: np.ndarray, voice: ClonedVoice | None = None) -> PromptRows:
        """Return the prompt for a streamed text without words yet; the first word will replace the last row's pad.

        Raises:
            InvalidRequest: If the reply continues from a recording, because these rows would contain its transcript.
        """
        if voice is not None and voice.codes is not None:
            expected = "whole or streaming, because the recording's transcript is given"
            raise InvalidRequest("options.text_mode", expected, "open")
        return PromptRows(np.concatenate([head, self._frames(voice)]), audios=_x_vector(head, voice))

    def _frames(self, voice: ClonedVoice | None) -> np.ndarray:
        """Return the code rows before the reply, [1 + T, S]: the begin id and the voice's frames, but no words."""
        begin = self._pairs([self._vocabulary.text.pad], [self._vocabulary.codec.bos])
        if voice is None or voice.codes is None:
            return begin
        frames = code_rows(self._layout, voice.codes)
        frames[:, -1] = self._vocabulary.text.pad
        return np.concatenate([begin, frames])

    def _language(self, voice: ClonedVoice | str | None, language: str | None) -> list[int]:
        """Return the marker ids for a language; a speaker's dialect replaces Chinese or an unset language."""
        codec = self._vocabulary.codec
        vocabulary = self._vocabulary
        dialect = vocabulary.dialects.get(voice) if isinstance(voice, str) else None
        if dialect is not None and language in (None, CHINESE):
            language = dialect
        if language is None:
            return [codec.nothink, codec.think_bos, codec.think_eos]
        return [codec.think, codec.think_bos, vocabulary.languages[language], codec.think_eos]

    def _pairs(self, texts: Sequence[int], codes: Sequence[int]) -> np.ndarray:
        """Return rows [n, S], each with a text id and a codec-vocabulary id."""
        rows = stream0_rows(self._layout, [self._vocabulary.num_text_ids + code for code in codes])
        rows[:, -1] = texts
        return rows


def _x_vector(head: np.ndarray, voice: ClonedVoice | None) -> tuple[InputAudio, ...]:
    return () if voice is None else (InputAudio(len(head) - 2, 1, voice.x_vector[None]),)


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's tokenizer and, for cloning, its codec and speaker encoder."""
    config = config_at(checkpoint)
    vocabulary = Qwen3TtsVocabulary.from_record(config[VOCABULARY])
    clones = vocabulary.kind == "base"
    voices = open_voices(checkpoint, codec, device, config["hidden_size"]) if clones else None
    return Qwen3TtsTemplate(family, vocabulary, Subwords(TextTokenizer.at(checkpoint), family), voices)
