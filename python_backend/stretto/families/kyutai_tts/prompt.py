"""Prompts of Kyutai TTS: the codes of a recording of the voice, and the words of the text for the rows of the reply.

A row of initial ids comes first. The recording's codes are where the model's own would be, behind the delays, so the
last of them are in the first rows of the reply. As in the authors' `get_prefix`, its last two frames are left out.
"""

import wave
from functools import cached_property
from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.codecs.mimi import MimiCodec, MimiEncoder, require_mimi
from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.families.base import Family, Task
from stretto.families.kyutai_tts.family import END_OF_WORDS, MAX_VOICE_S, NAME, TtsVocabulary
from stretto.families.kyutai_tts.words import WordStream
from stretto.families.moshi.prompt import codes_in
from stretto.families.plugin import VOCABULARY, config_at
from stretto.families.prompting import PLAIN, Manner, Piece, PromptRows, Template
from stretto.families.text import SENTENCEPIECE_FILE, PlainTokenizer, check_text, sentencepiece_at
from stretto.records.prompt import unpack_words
from stretto.untrusted_files import regular_file

VOICES = "voices"  # folder of a checkpoint
NUM_LEFT_OUT = 2  # last frames of a recording
MIN_FRAMES = 3
MAX_WAV_BYTES = 1 << 24


class TtsTemplate:
    """Prompt template of Kyutai TTS."""

    def __init__(self, family: Family, known: TtsVocabulary, tokenizer: PlainTokenizer, codec: MimiCodec, folder: Path):
        self._family, self._known, self._tokenizer = family, known, tokenizer
        self._encoder, self._folder, self._rate = MimiEncoder(codec), folder, codec.spec.sample_rate

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows of the voice, with the words of the text as track.

        The voice is that of the recording in `pieces`, if any, or else the one named `voice`.
        """
        *recordings, piece = pieces
        assert piece.text is not None, task.name
        check_text(piece.text, piece.path, self._family.max_text_chars)
        codes = self._recorded(recordings[0]) if recordings else self._named(voice)
        rows, tail = voice_rows(self._known, codes)
        track: tuple[int, ...] = ()
        if not manner.is_open:
            ids, _ = WordStream(self._tokenizer, piece.path).after(piece.text, is_last=True)
            if not any(tokens for tokens, _ in unpack_words(ids)):
                raise InvalidRequest(piece.path, "text with a word that can be spoken", shown(piece.text))
            track = (*ids, END_OF_WORDS)
        return PromptRows(rows, delayed_tail=tail, track=track, num_reference_rows=codes.shape[1])

    def _named(self, voice: str | None) -> np.ndarray:
        if voice is None:
            raise InvalidRequest("messages", "a system turn with audio (this model has no named voices)", "none")
        return self._voices[voice]

    @cached_property
    def _voices(self) -> dict[str, np.ndarray]:
        """Codes of the named voices, [K, n]."""
        return {
            name: self._encoder.encode_all(samples_at(self._folder / f"{name}.wav", self._rate))[:, :-NUM_LEFT_OUT]
            for name in self._known.voices
        }

    def _recorded(self, piece: Piece) -> np.ndarray:
        """Return the codes of a recording, [K, n]."""
        codes = codes_in(piece, self._known) if piece.pcm is None else self._encoder.encode_all(piece.pcm)
        if codes.shape[1] < MIN_FRAMES:
            raise InvalidRequest(piece.path, f"at least {MIN_FRAMES} frames of audio", f"{codes.shape[1]} frames")
        return codes[:, :-NUM_LEFT_OUT]


def voice_rows(known: TtsVocabulary, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the prompt of a recording, and the rows of the reply that its delayed codes reach.

    Args:
        known: Vocabulary of the checkpoint.
        codes: Codes of the recording, [K, n].

    Returns:
        Rows, int32 [1 + n, S], and streams 1 to S - 1 of the first rows of the reply, int32 [D', S - 1].
    """
    num_frames, slowest = codes.shape[1], max(known.row_delays)
    rows = np.full((1 + num_frames + slowest, 2 + known.num_codebooks), known.nothing, np.int32)
    rows[0, 0] = known.initial_text
    for k, (first, delay, behind) in enumerate(zip(known.first_codes, known.delays, known.row_delays, strict=True)):
        rows[: 1 + delay, 1 + k] = first + known.codebook_size
        rows[1 + behind : 1 + behind + num_frames, 1 + k] = first + codes[k]
    return rows[: 1 + num_frames], rows[1 + num_frames :, 1:]


def samples_at(path: Path, rate: int) -> np.ndarray:
    """Return the samples of a voice's file, float32 [n]; raise CheckpointError unless it is mono 16-bit at `rate`."""
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


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template with a checkpoint's Mimi, tokenizer and voices."""
    mimi = require_mimi(codec, NAME)
    known = TtsVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    template = TtsTemplate(family, known, sentencepiece_at(checkpoint / SENTENCEPIECE_FILE), mimi, checkpoint / VOICES)
    _ = template._voices  # a file that cannot be read is reported at the start
    return template
