"""Moshi prompts: a row of initial ids, and the user's codes for the rows of the reply.

The authors' server discards the first 80 ms of audio, because its first row carries initial ids. Here, that row is the
prompt, and the first frame of the audio is read.
"""

from collections.abc import Sequence
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
from stretto_kyutai.moshi.family import NAME, FrameVocabulary, MoshiVocabulary


class MoshiTemplate:
    """Moshi prompt template."""

    def __init__(self, vocabulary: MoshiVocabulary, codec: MimiCodec):
        self.vocabulary = vocabulary
        self.encoder = MimiEncoder(codec)

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows before the reply, with the codes of the last recording as the track."""
        *before, piece = pieces
        if piece.pcm is None and piece.codes is None:
            raise InvalidRequest(piece.path, "audio", "text")
        codes = codes_in(piece, self.vocabulary) if piece.pcm is None else self.encoder.encode_all(piece.pcm)
        return self.first_rows(before, voice, tuple(user_ids(self.vocabulary).push(codes).reshape(-1).tolist()))

    def write_live(self, task: Task, pieces: tuple[Piece, ...], voice: str | None) -> PromptRows:
        """Return the rows before the reply. The codes follow as the audio arrives."""
        return self.first_rows(pieces, voice)

    def first_rows(self, pieces: Sequence[Piece], voice: str | None, track: tuple[int, ...] = ()) -> PromptRows:
        """Return the rows before the reply, given the pieces that precede the user's audio."""
        return first_row(self.vocabulary, track)


def codes_in(piece: Piece, vocabulary: FrameVocabulary) -> np.ndarray:
    """Return a recording's codes [K, n]; raise InvalidRequest if they do not fit the model."""
    codes = piece.codes
    size = (vocabulary.num_codebooks, vocabulary.codebook_size)
    assert codes is not None, "a recording has samples or codes"
    if codes.shape[0] != size[0] or codes.size == 0 or not 0 <= codes.min() <= codes.max() < size[1]:
        raise InvalidRequest(piece.path, f"codes [{size[0]}, n] in [0, {size[1]})", list(codes.shape))
    return codes


def first_row(vocabulary: MoshiVocabulary, track: tuple[int, ...] = ()) -> PromptRows:
    """Return the prompt: a row with the initial id of each stream.

    Delayed streams repeat their initial id in the following rows until their delay has passed.
    """
    ids = np.array([vocabulary.initial_ids], np.int32)
    tail = np.repeat(ids[:, 1:], max(vocabulary.delays), 0)
    return PromptRows(ids, delayed_tail=tail if len(tail) else None, track=track)


def user_ids(vocabulary: MoshiVocabulary) -> FrameIds:
    """Create the converter of the user's codes to ids."""
    return FrameIds(vocabulary.first_codes[vocabulary.num_codebooks :], vocabulary.delays, vocabulary.user_ids_before)


def open_live_input(checkpoint: Path, codec: MimiCodec) -> LiveInput:
    """Return the live-audio input, whose encoder uses the checkpoint's Mimi weights."""
    return live_input(MoshiVocabulary.from_record(config_at(checkpoint)[VOCABULARY]), codec)


def live_input(vocabulary: MoshiVocabulary, codec: MimiCodec) -> LiveInput:
    """Return the live-audio input for a vocabulary."""
    return LiveInput(MimiEncoder(codec), codec.spec.sample_rate, 0.0, 0.0, lambda: user_ids(vocabulary))


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's Mimi weights."""
    return MoshiTemplate(MoshiVocabulary.from_record(config_at(checkpoint)[VOCABULARY]), require_mimi(codec, NAME))
