"""Speaker encoder for voice cloning, as published with Qwen3-TTS: recordings to x-vectors.

    speaker = load_speaker_encoder(checkpoint)           # None if the checkpoint has none
    x_vector = speaker.encode(pcm)                       # float32 [H] of mono float32 [n] at 24 kHz

`preprocessing.audio` resamples recordings with soxr, as the authors' wrapper does. Results are deterministic;
`family.encoded_voices.CachedEncoder` caches the most recent ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniDiTConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import ECAPA_TimeDelayNet

from stretto.encoders.voice_spectra import mel_spectrogram
from stretto.errors import CheckpointError, InvalidRequest
from stretto.untrusted_files import UNPARSABLE, json_object
from stretto.weights.loading import load_strictly, read_tensors

FOLDER = "speaker_encoder"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PREFIX = "speaker_encoder."
SAMPLE_RATE = 24_000
FOURIER = 1024
HOP = 256
HIGHEST_HZ = 12_000.0


@dataclass(frozen=True, slots=True)
class SpeakerConfig:
    """Sizes in `speaker_encoder_config`, under their published names.

    Releases contain only the width of the x-vector and the sample rate. The other values have the defaults of
    `Qwen3TTSSpeakerEncoderConfig`.
    """

    enc_dim: int
    sample_rate: int = SAMPLE_RATE
    mel_dim: int = 128
    enc_channels: tuple[int, ...] = (512, 512, 512, 512, 1536)
    enc_kernel_sizes: tuple[int, ...] = (5, 3, 3, 3, 1)
    enc_dilations: tuple[int, ...] = (1, 2, 3, 4, 1)
    enc_attention_channels: int = 128
    enc_res2net_scale: int = 8
    enc_se_channels: int = 128

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "SpeakerConfig":
        """Return the sizes in `config.json`; raise TypeError or ValueError if a value is unsupported."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
        }
        config = cls(**values)
        if config.sample_rate != SAMPLE_RATE:
            raise ValueError(f"sample_rate must be {SAMPLE_RATE}, got {config.sample_rate}")
        lists = (config.enc_channels, config.enc_kernel_sizes, config.enc_dilations)
        if len({len(values_by_layer) for values_by_layer in lists}) != 1 or len(config.enc_channels) < 3:
            raise ValueError(f"enc_channels, enc_kernel_sizes, enc_dilations: expected equal lengths >= 3, got {lists}")
        return config

    @property
    def min_samples(self) -> int:
        """Minimum length of a recording in samples; the encoder's reflection padding fails on shorter input."""
        pairs = zip(self.enc_kernel_sizes, self.enc_dilations, strict=True)
        frames = 1 + max((kernel - 1) * dilation - (kernel - 1) * dilation // 2 for kernel, dilation in pairs)
        return max(FOURIER - HOP, frames * HOP)


class SpeakerEncoder(nn.Module):
    """Speaker encoder, which converts samples to x-vectors."""

    def __init__(self, config: SpeakerConfig) -> None:
        super().__init__()
        self.config = config
        names = ("enc_dim", "mel_dim", "enc_attention_channels", "enc_res2net_scale", "enc_se_channels")
        lists = ("enc_channels", "enc_kernel_sizes", "enc_dilations")
        values = {name: getattr(config, name) for name in names} | {name: list(getattr(config, name)) for name in lists}
        self.network = ECAPA_TimeDelayNet(Qwen2_5OmniDiTConfig(**values))

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Return the x-vector, float32 [H], of pcm, float32 [n] at 24 kHz; raise InvalidRequest below about 50 ms."""
        if len(pcm) < self.config.min_samples:
            seconds = self.config.min_samples / SAMPLE_RATE
            raise InvalidRequest("audio", f"at least {seconds:.3f} s of a voice", f"{len(pcm) / SAMPLE_RATE:.3f} s")
        samples = torch.from_numpy(np.asarray(pcm)).to(next(self.parameters()))
        mel = mel_spectrogram(samples, self.config.mel_dim, HIGHEST_HZ, fourier=FOURIER, hop=HOP)
        return self.network(mel[None])[0].cpu().numpy()


def load_speaker_encoder(checkpoint: Path, device: str = "cpu") -> SpeakerEncoder | None:
    """Load a checkpoint's speaker encoder, or return None if it has none; raise CheckpointError if it is invalid."""
    folder = checkpoint / FOLDER
    return read_speaker_encoder(folder).to(device) if folder.is_dir() else None


def read_speaker_encoder(folder: Path) -> SpeakerEncoder:
    """Load the speaker encoder in `folder`; raise CheckpointError if its files are missing or invalid."""
    try:
        config = SpeakerConfig.from_record(json_object(folder / CONFIG))
        encoder = SpeakerEncoder(config)
    except (*UNPARSABLE, RuntimeError) as error:
        raise CheckpointError(
            f"{folder / CONFIG}: expected the parameters of a speaker encoder, got {error}"
        ) from error
    load_strictly(encoder.network, read_tensors(folder / WEIGHTS), folder / WEIGHTS)
    return encoder.eval().requires_grad_(False)
