"""Voices to be cloned: what a prompt of a Base release is given of a recording.

The authors' wrapper calls the two ways x-vector only and in-context (`create_voice_clone_prompt` of
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
    """The voice of a recording, as a prompt has it.

    x_vector: [H] float32. words: ids of what is said there, with `codes` [K, T] of it: the model goes on from both;
    without, it is given the x-vector alone.
    """

    x_vector: np.ndarray
    words: tuple[int, ...] = ()
    codes: np.ndarray | None = None


class ClonedVoices:
    """What recordings are turned into; what became of those that came last is remembered by what they contain."""

    def __init__(self, encoder: VoiceEncoder):
        self._codes = CachedEncoder(encoder.codec.encode)
        self._x_vectors = CachedEncoder(encoder.speaker.encode)

    def hear(self, pcm: np.ndarray, words: Sequence[int]) -> ClonedVoice:
        """The voice of mono `pcm` [n] float32 at 24 kHz in which `words` are said, none where nobody says which."""
        x_vector = self._x_vectors.encode(pcm)
        return ClonedVoice(x_vector, tuple(words), self._codes.encode(pcm)) if words else ClonedVoice(x_vector)


def open_voices(checkpoint: Path, codec: Codec, device: str, hidden_size: int) -> ClonedVoices:
    """Over the codec and the speaker encoder of a checkpoint; CheckpointError where it has none, or another's."""
    encoder = load_voice_encoder(checkpoint, codec, device)
    if encoder is None:
        raise CheckpointError(f"{checkpoint / FOLDER}: expected the speaker encoder of a model that clones voices")
    if encoder.hidden != hidden_size:
        expected = f"a speaker encoder of width {hidden_size}, the model's"
        raise CheckpointError(f"{checkpoint / FOLDER}: expected {expected}, got {encoder.hidden}")
    return ClonedVoices(encoder)
