"""Cloned voices: the x-vector, transcript and codes of a recording, for prompts of a Base release.

The authors' wrapper calls the two modes x-vector only and in-context (`create_voice_clone_prompt` of
https://github.com/QwenLM/Qwen3-TTS, qwen_tts/inference/qwen3_tts_model.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stretto.codec.base import Codec
from stretto.codec.qwen3_12hz.speaker import FOLDER
from stretto.codec.qwen3_12hz.voice import VoiceEncoder, load_voice_encoder
from stretto.errors import CheckpointError
from stretto.families.encoder_cache import CachedEncoder


@dataclass(frozen=True, slots=True, eq=False)
class ClonedVoice:
    """Voice of a recording, as used in a prompt.

    Attributes:
        x_vector: [H] float32.
        words: Ids of the recording's transcript; the model continues from them and `codes`. If empty, it is given only
            the x-vector.
        codes: [K, T] of the recording; None without a transcript.
    """

    x_vector: np.ndarray
    words: tuple[int, ...] = ()
    codes: np.ndarray | None = None


class ClonedVoices:
    """Encoder of recordings to voices, with caches keyed by the recording's samples."""

    def __init__(self, encoder: VoiceEncoder):
        self._codes = CachedEncoder(encoder.codec.encode)
        self._x_vectors = CachedEncoder(encoder.speaker.encode)

    def hear(self, pcm: np.ndarray, words: Sequence[int]) -> ClonedVoice:
        """Return the voice of mono `pcm` [n] float32 at 24 kHz; `words` is its transcript, empty if unknown."""
        x_vector = self._x_vectors.encode(pcm)
        return ClonedVoice(x_vector, tuple(words), self._codes.encode(pcm)) if words else ClonedVoice(x_vector)


def open_voices(checkpoint: Path, codec: Codec, device: str, hidden_size: int) -> ClonedVoices:
    """Return the encoder of voices, from the codec and the speaker encoder of a checkpoint.

    Raises:
        CheckpointError: If the checkpoint has no speaker encoder, or one of another width than `hidden_size`.
    """
    encoder = load_voice_encoder(checkpoint, codec, device)
    if encoder is None:
        raise CheckpointError(f"{checkpoint / FOLDER}: expected the speaker encoder of a model that clones voices")
    if encoder.hidden != hidden_size:
        expected = f"a speaker encoder of width {hidden_size}, the model's"
        raise CheckpointError(f"{checkpoint / FOLDER}: expected {expected}, got {encoder.hidden}")
    return ClonedVoices(encoder)
