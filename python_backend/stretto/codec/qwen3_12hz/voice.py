"""Voice cloning for Qwen3-TTS: codes and x-vector of a recording.

    voices = load_voice_encoder(checkpoint, codec)       # None if the checkpoint has no speaker encoder
    voice = voices.encode(pcm)                           # mono float32 at 24 kHz: `spec.sample_rate` of the codec
    voice.codes [16, T] int64                            # in-context cloning: rows of the prompt
    voice.x_vector [H] float32                           # replaces an embedding

`preprocessing.audio` resamples recordings to the codec's rate by soxr, as the authors' wrapper does. Results are
deterministic; `families.encoder_cache` caches the latest.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stretto.codec.base import Codec
from stretto.codec.qwen3_12hz.speaker import SAMPLE_RATE, SpeakerEncoder, load_speaker_encoder
from stretto.errors import CheckpointError


@dataclass(frozen=True, slots=True, eq=False)
class Voice:
    """Voice of a recording. codes: int64 [K, T], T = ceil(n / 1920). x_vector: float32 [H]."""

    codes: np.ndarray
    x_vector: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class VoiceEncoder:
    """Codec and speaker encoder. For one thread at a time."""

    codec: Codec
    speaker: SpeakerEncoder

    @property
    def hidden(self) -> int:
        """Width of the language model, H."""
        return self.speaker.config.enc_dim

    def encode(self, pcm: np.ndarray) -> Voice:
        """Return the voice of mono `pcm`, float32 [n] at 24 kHz.

        Raise InvalidRequest naming `audio` if it is too short.
        """
        x_vector = self.speaker.encode(pcm)  # refuses short recordings before the codec runs
        return Voice(self.codec.encode(pcm), x_vector)


def load_voice_encoder(checkpoint: Path, codec: Codec, device: str = "cpu") -> VoiceEncoder | None:
    """Return the voice encoder of a checkpoint folder, or None if it has no speaker encoder.

    Raises:
        CheckpointError: For missing, unknown or misshapen tensors.
    """
    speaker = load_speaker_encoder(checkpoint, device)
    if speaker is None:
        return None
    if codec.spec.sample_rate != SAMPLE_RATE:
        raise CheckpointError(f"{checkpoint}: expected a codec of {SAMPLE_RATE} Hz, got {codec.spec.sample_rate}")
    return VoiceEncoder(codec, speaker)
