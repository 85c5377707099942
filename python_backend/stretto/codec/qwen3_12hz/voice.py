"""A voice to be cloned by Qwen3-TTS: what its prompts are given of a recording.

    voices = load_voice_encoder(checkpoint, codec)       # None where the checkpoint has no speaker encoder
    voice = voices.encode(pcm)                           # mono float32 at 24 kHz: `spec.sample_rate` of the codec
    voice.codes [16, T] int64                            # in-context cloning: rows of the prompt
    voice.x_vector [H] float32                           # in the place of an embedding

`preprocessing.audio` resamples recordings to the codec's rate by soxr, as the authors' wrapper does. Both parts are the
same for the same samples: `families.encoder_cache` keeps what came last.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stretto.codec.base import Codec
from stretto.codec.qwen3_12hz.speaker import SAMPLE_RATE, SpeakerEncoder, load_speaker_encoder
from stretto.errors import CheckpointError


@dataclass(frozen=True, slots=True, eq=False)
class Voice:
    """codes: [K, T] int64, T = ceil(n / 1920). x_vector: [H] float32."""

    codes: np.ndarray
    x_vector: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class VoiceEncoder:
    """The codec, which makes codes, and the speaker encoder. Used by one thread at a time."""

    codec: Codec
    speaker: SpeakerEncoder

    @property
    def hidden(self) -> int:
        """H, which is the language model's width."""
        return self.speaker.config.enc_dim

    def encode(self, pcm: np.ndarray) -> Voice:
        """The voice of mono `pcm` [n] float32 at 24 kHz; InvalidRequest, of `audio`, where it is too short."""
        x_vector = self.speaker.encode(pcm)  # refuses what is too short before the codec has worked
        return Voice(self.codec.encode(pcm), x_vector)


def load_voice_encoder(checkpoint: Path, codec: Codec, device: str = "cpu") -> VoiceEncoder | None:
    """What hears voices for the checkpoint in a folder; None where it brings no speaker encoder.

    CheckpointError names what is missing, unknown or of another shape.
    """
    speaker = load_speaker_encoder(checkpoint, device)
    if speaker is None:
        return None
    if codec.spec.sample_rate != SAMPLE_RATE:
        raise CheckpointError(f"{checkpoint}: expected a codec of {SAMPLE_RATE} Hz, got {codec.spec.sample_rate}")
    return VoiceEncoder(codec, speaker)
