"""Prompts of Moshi: a row of initial ids, and the codes of the user's speech for the rows of the reply.

The authors' server discards the first 80 ms of audio, because its first row carries initial ids. Here, that row is the
prompt, and the first frame of the audio is heard.
"""

from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.codecs.mimi import MimiCodec, MimiEncoder
from stretto.errors import CheckpointError, InvalidRequest
from stretto.families.base import Family, Task
from stretto.families.live_audio import FrameIds, LiveInput
from stretto.families.moshi.family import NAME, MoshiVocabulary
from stretto.families.plugin import VOCABULARY, config_at
from stretto.families.prompting import PLAIN, Manner, Piece, PromptRows, Template


class MoshiTemplate:
    """Prompt template of Moshi."""

    def __init__(self, known: MoshiVocabulary, codec: MimiCodec):
        self._known, self._encoder = known, MimiEncoder(codec)

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the row of initial ids, with the codes of the only piece as track."""
        (piece,) = pieces
        if piece.codes is not None:
            codes = piece.codes
            size = self._known.num_codebooks, self._known.codebook_size
            if codes.shape[0] != size[0] or codes.size == 0 or not 0 <= codes.min() <= codes.max() < size[1]:
                raise InvalidRequest(piece.path, f"codes [{size[0]}, n] in [0, {size[1]})", list(codes.shape))
        elif piece.pcm is not None:
            codes = self._encoder.encode_all(piece.pcm)
        else:
            raise InvalidRequest(piece.path, "audio", "text")
        track = user_ids(self._known).push(codes)
        return first_row(self._known, tuple(track.reshape(-1).tolist()))

    def write_live(self, task: Task) -> PromptRows:
        """Return the row of initial ids; the codes follow as the audio arrives."""
        return first_row(self._known)


def first_row(known: MoshiVocabulary, track: tuple[int, ...] = ()) -> PromptRows:
    """Return the prompt: a row with the initial id of each stream.

    Delayed streams repeat their initial id in the following rows until their delay has passed.
    """
    ids = np.array([known.initial_ids], np.int32)
    tail = np.repeat(ids[:, 1:], max(known.delays), 0)
    return PromptRows(ids, delayed_tail=tail if len(tail) else None, track=track)


def user_ids(known: MoshiVocabulary) -> FrameIds:
    """Return the conversion of the user's codes to ids."""
    initial = known.initial_ids[1 + known.num_codebooks :]
    return FrameIds(known.first_codes[known.num_codebooks :], known.delays, initial)


def open_live_input(checkpoint: Path, codec: MimiCodec) -> LiveInput:
    """Return the encoder of live audio with a checkpoint's Mimi."""
    known = MoshiVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    return LiveInput(MimiEncoder(codec), codec.spec.sample_rate, 0.0, 0.0, lambda: user_ids(known))


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template with a checkpoint's Mimi."""
    if not isinstance(codec, MimiCodec):
        raise CheckpointError(f"{NAME}: expected the codec mimi, got {codec.spec.name}")
    return MoshiTemplate(MoshiVocabulary.from_record(config_at(checkpoint)[VOCABULARY]), codec)
