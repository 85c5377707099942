"""Kyutai STT prompts: a row of initial ids, and the recording's codes for the rows of the reply.

As in the authors' code, there is silence before the recording if the model was trained with it. After the recording,
silence for the model's delay plus 1 s ensures that the last words are generated.
"""

from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.codecs.mimi import MimiCodec, require_mimi
from stretto.codecs.mimi_encoder import MimiEncoder
from stretto.errors import InvalidRequest
from stretto.family.base import Family, Task
from stretto.family.live_audio import FrameIds, LiveInput
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template
from stretto_kyutai.kyutai_stt.family import NAME, SttVocabulary


class SttTemplate:
    """Kyutai STT prompt template."""

    def __init__(self, vocabulary: SttVocabulary, codec: MimiCodec):
        self._vocabulary = vocabulary
        self._rate = codec.spec.sample_rate
        self._encoder = MimiEncoder(codec)

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return a prompt: the row of initial ids, and the codes of the only recording as its track."""
        (piece,) = pieces
        if piece.pcm is None:
            expected = "audio samples (codes cannot be continued with silence)"
            raise InvalidRequest(piece.path, expected, "codes" if piece.codes is not None else "text")
        codes = self._encoder.encode_all(self._with_silence(piece.pcm))
        return PromptRows(initial_row(self._vocabulary), track=track_of(codes, self._vocabulary))

    def write_live(self, task: Task, pieces: tuple[Piece, ...], voice: str | None) -> PromptRows:
        """Return the row of initial ids. The codes follow as the audio arrives."""
        return PromptRows(initial_row(self._vocabulary))

    def _with_silence(self, pcm: np.ndarray) -> np.ndarray:
        before, after = (int(seconds * self._rate) for seconds in (self._vocabulary.prefix_s, self._vocabulary.flush_s))
        return np.pad(pcm.astype(np.float32, copy=False), (before, after))


def initial_row(vocabulary: SttVocabulary) -> np.ndarray:
    """Return the prompt, int32 [1, 1 + K]: the initial id of each stream."""
    ids = [vocabulary.initial_text, *(first + vocabulary.codebook_size for first in vocabulary.first_codes)]
    return np.array([ids], np.int32)


def track_of(codes: np.ndarray, vocabulary: SttVocabulary) -> tuple[int, ...]:
    """Return the ids of codes [K, T], frame by frame."""
    return tuple((codes.T + np.array(vocabulary.first_codes)).reshape(-1).tolist())


def open_live_input(checkpoint: Path, codec: MimiCodec) -> LiveInput:
    """Return the live-audio encoder, which uses the checkpoint's Mimi, and the silence to add."""
    vocabulary = SttVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    rate = codec.spec.sample_rate
    return LiveInput(
        MimiEncoder(codec), rate, vocabulary.prefix_s, vocabulary.flush_s, lambda: FrameIds(vocabulary.first_codes)
    )


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's Mimi weights."""
    return SttTemplate(SttVocabulary.from_record(config_at(checkpoint)[VOCABULARY]), require_mimi(codec, NAME))
