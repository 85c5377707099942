"""Prompts of Kyutai TTS: the voice, and the words of the text for the rows of the reply.

A row of initial ids comes first. The codes of a recording are in the rows that the model's own would be in. Because of
the delays, the last of them are in the reply's first rows. The last two frames are left out, as in the authors'
`get_prefix`.

In releases with conditions there are no recordings. The vectors of up to five voices are conditions of the reply, one
voice after the other, as in the authors' `make_condition_attributes`.
"""

import wave
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from stretto.codecs.base import Codec
from stretto.codecs.mimi import MimiCodec, require_mimi
from stretto.codecs.mimi_encoder import MimiEncoder
from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.family.base import Family, Task
from stretto.family.conversion import BOUNDED, is_bounded
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template
from stretto.family.text import SENTENCEPIECE_FILE, PlainTokenizer, check_text, sentencepiece_at
from stretto.records.prompt import Condition, SourceWord
from stretto.untrusted_files import regular_file
from stretto_kyutai.kyutai_tts.family import (
    END_OF_WORDS,
    GUIDANCE_SCALE,
    MAX_NUMBERS,
    MAX_VECTORS,
    MAX_VOICE_S,
    NAME,
    TtsVocabulary,
)
from stretto_kyutai.kyutai_tts.mechanism.script import unpack_words
from stretto_kyutai.kyutai_tts.words import WordStream
from stretto_kyutai.moshi.prompt import codes_in

VOICES = "voices"  # folder of a checkpoint
SPEAKERS = "speaker_wavs"  # tensor of a voice's file
SAMPLE_RATE = 24_000
NUM_LEFT_OUT = 2  # last frames of a recording
MIN_FRAMES = 3
MAX_WAV_BYTES = MAX_VECTOR_BYTES = 1 << 24
FLOATS = ("F32", "BF16", "F16")
NUM_CACHED = 64  # voices whose vectors are kept in memory; those of a published voice take 256 kB


class TtsTemplate:
    """Prompt template of Kyutai TTS."""

    def __init__(
        self, family: Family, vocabulary: TtsVocabulary, tokenizer: PlainTokenizer, codec: MimiCodec, folder: Path
    ):
        self._family = family
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._encoder = MimiEncoder(codec)
        self._folder = folder
        self._rate = codec.spec.sample_rate
        self._vectors = lru_cache(NUM_CACHED)(self._read_vectors)

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows of a recording, or else of `voice`, with the words of the text as track."""
        *recordings, piece = pieces
        assert piece.text is not None, task.name
        check_text(piece.text, piece.path, self._family.max_text_chars)
        condition = None
        codes = np.zeros((self._vocabulary.num_codebooks, 0), np.int64)
        if self._vocabulary.conditions is not None:
            condition = self._condition(voice, manner.guidance_scale)
        else:
            codes = self._recorded(recordings[0]) if recordings else self._named(voice)
        rows, tail = voice_rows(self._vocabulary, codes)
        track: tuple[int, ...] = ()
        sources: tuple[SourceWord, ...] = ()
        if not manner.is_open:
            words = WordStream(self._tokenizer, piece.path, has_turns=self._vocabulary.has_turns)
            ids, words = words.after(piece.text, is_last=True)
            if not any(tokens for tokens, _ in unpack_words(ids)):
                raise InvalidRequest(piece.path, "text with a word that can be spoken", shown(piece.text))
            track = (*ids, END_OF_WORDS)
            sources = tuple(words.sources)
        return PromptRows(
            rows,
            tuple(source.word for source in sources),
            delayed_tail=tail,
            track=track,
            num_reference_rows=codes.shape[1],
            condition=condition,
            sources=sources,
        )

    def check_voices(self) -> None:
        """Raise CheckpointError if the file of a named voice cannot be used."""
        if self._vocabulary.conditions is None:
            _ = self._voices
            return
        for name in self._vocabulary.voices:
            self._read_vectors(name)

    def _condition(self, voice: str | None, scale: float | None) -> Condition:
        """Return the condition of a reply: the speakers' voices, separated by commas, and a scale (None: default)."""
        assert voice is not None, "a checkpoint with conditions has named voices"
        scales = self._vocabulary.guidance_scales
        if scale is None:
            scale = GUIDANCE_SCALE if GUIDANCE_SCALE in scales else scales[0]
        vectors = np.concatenate([self._vectors(name) for name in voice.split(",")])
        return Condition((scales.index(scale), self._vocabulary.control_id), vectors)

    def _read_vectors(self, name: str) -> np.ndarray:
        """Return the vectors of a named voice, float32 [n, W]."""
        assert self._vocabulary.voice_shape is not None
        num_vectors, width = self._vocabulary.voice_shape
        path = self._folder / f"{name}.safetensors"
        vectors = vectors_at(path, width)
        if len(vectors) != num_vectors:
            raise CheckpointError(f"{path}: expected {num_vectors} vectors, got {len(vectors)}")
        return vectors

    def _named(self, voice: str | None) -> np.ndarray:
        if voice is None:
            raise InvalidRequest("messages", "a system turn with audio (this model has no named voices)", "none")
        return self._voices[voice]

    @cached_property
    def _voices(self) -> dict[str, np.ndarray]:
        """Codes of the named voices, [K, n]."""
        return {
            name: self._encoder.encode_all(samples_at(self._folder / f"{name}.wav", self._rate))[:, :-NUM_LEFT_OUT]
            for name in self._vocabulary.voices
        }

    def _recorded(self, piece: Piece) -> np.ndarray:
        """Return the codes of a recording, [K, n]."""
        codes = codes_in(piece, self._vocabulary) if piece.pcm is None else self._encoder.encode_all(piece.pcm)
        if codes.shape[1] < MIN_FRAMES:
            raise InvalidRequest(piece.path, f"at least {MIN_FRAMES} frames of audio", f"{codes.shape[1]} frames")
        return codes[:, :-NUM_LEFT_OUT]


def voice_rows(vocabulary: TtsVocabulary, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the prompt of a recording with codes [K, n], and the rows of the reply that its delayed codes reach.

    Returns:
        Rows, int32 [1 + n, S], and streams 1 to S - 1 of the first D rows of the reply, int32 [D, S - 1],
            where D is the maximum delay.
    """
    num_frames = codes.shape[1]
    slowest = max(vocabulary.row_delays)
    rows = np.full((1 + num_frames + slowest, 2 + vocabulary.num_codebooks), vocabulary.nothing, np.int32)
    rows[0, 0] = vocabulary.initial_text
    for k, (first, delay, behind) in enumerate(
        zip(vocabulary.first_codes, vocabulary.delays, vocabulary.row_delays, strict=True)
    ):
        rows[: 1 + delay, 1 + k] = first + vocabulary.codebook_size
        rows[1 + behind : 1 + behind + num_frames, 1 + k] = first + codes[k]
    return rows[: 1 + num_frames], rows[1 + num_frames :, 1:]


def samples_at(path: Path, rate: int) -> np.ndarray:
    """Return the samples of a voice's file, float32 [n], which must be mono 16-bit at `rate` and last at least 1 s."""
    try:
        with wave.open(str(regular_file(path, MAX_WAV_BYTES)), "rb") as file:
            shape = file.getnchannels(), 8 * file.getsampwidth(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError, OSError) as error:
        raise CheckpointError(f"{path}: expected a WAV file, got {error!r}") from error
    if shape != (1, 16, rate):
        raise CheckpointError(f"{path}: expected 1 channel of 16 bits at {rate} Hz, got {shape}")
    pcm = np.frombuffer(data, "<i2").astype(np.float32) / 32768
    if not 1.0 <= len(pcm) / rate <= MAX_VOICE_S:
        raise CheckpointError(f"{path}: expected 1 to {MAX_VOICE_S:g} s, got {len(pcm) / rate:.2f} s")
    return pcm


def vectors_at(path: Path, width: int) -> np.ndarray:
    """Return a voice's vectors, float32 [n, W], from a safetensors file with `speaker_wavs` [1, W, n]."""
    try:
        with safe_open(regular_file(path, MAX_VECTOR_BYTES), "pt") as file:
            stored = file.get_slice(SPEAKERS)
            shape = stored.get_shape()
            dtype = stored.get_dtype()
            if dtype not in FLOATS or shape[:2] != [1, width] or len(shape) != 3 or not 1 <= shape[2] <= MAX_VECTORS:
                expected = f"{SPEAKERS} [1, {width}, 1 to {MAX_VECTORS}] of {' or '.join(FLOATS)}"
                raise CheckpointError(f"{path}: expected {expected}, got {shape} of {dtype}")
            if width * shape[2] > MAX_NUMBERS:
                raise CheckpointError(f"{path}: {SPEAKERS}: expected at most {MAX_NUMBERS} numbers, got {shape}")
            vectors = file.get_tensor(SPEAKERS).float()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: expected a safetensors file with {SPEAKERS}, got {error!r}") from error
    if not is_bounded(vectors):
        raise CheckpointError(f"{path}: {SPEAKERS}: expected {BOUNDED}, got {vectors.abs().max():g}")
    rows: np.ndarray = np.ascontiguousarray(vectors[0].T.numpy())
    return rows


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template with a checkpoint's Mimi, tokenizer and voices."""
    mimi = require_mimi(codec, NAME)
    vocabulary = TtsVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    template = TtsTemplate(
        family, vocabulary, sentencepiece_at(checkpoint / SENTENCEPIECE_FILE), mimi, checkpoint / VOICES
    )
    template.check_voices()  # a file that cannot be read is reported at the start
    return template
