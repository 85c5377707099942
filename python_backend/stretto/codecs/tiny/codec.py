"""`tiny`: bundled codec (16 kHz, 25 frames per second, 7 codebooks): residual quantisation of log-mel frames."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.base import CodecSpec, Stateful, Window
from stretto.codecs.tiny.vocoder import HOP, NUM_MELS, SAMPLE_RATE, Vocoder, VocoderConfig, log_mel
from stretto.errors import CheckpointError
from stretto.untrusted_files import UNPARSABLE, json_object
from stretto.weights.loading import load_strictly, read_tensors


class ResidualVQ(nn.Module):
    """Residual vector quantiser of mel frames, several of which are stacked to one vector of width M.

    It has a mean [M], a basis [M, D] and codebooks [K, V, D]. `decode` computes in float64, because the pitch derived
    from its result is integrated over the whole utterance.
    """

    mean: Tensor
    basis: Tensor
    codebooks: Tensor

    def __init__(self, width: int, rank: int, num_codebooks: int, codebook_size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("basis", torch.zeros(width, rank))
        self.register_buffer("codebooks", torch.zeros(num_codebooks, codebook_size, rank))

    def encode(self, stacked: Tensor) -> Tensor:
        """Return codes, int64 [T, K], of stacked mel frames [T, M]: the nearest vector of each codebook in turn."""
        residual = (stacked - self.mean) @ self.basis
        codes = []
        for codebook in self.codebooks:
            distance = codebook.square().sum(1) - 2 * residual @ codebook.T
            nearest = distance.argmin(1)
            residual = residual - codebook[nearest]
            codes.append(nearest)
        return torch.stack(codes, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return stacked mel frames, float64 [B, T, M], of codes [B, K, T]; the last codebooks may be missing."""
        books = torch.arange(codes.shape[1], device=codes.device)
        vectors = self.codebooks[books[:, None], codes].double().sum(1)
        return vectors @ self.basis.double().T + self.mean.double()


CONFIG_FILE, WEIGHTS_FILE = "codec.json", "codec.safetensors"


@dataclass(frozen=True)
class TinyConfig:
    """Contents of `codec.json`."""

    num_codebooks: int
    codebook_size: int
    mel_frames: int  # mel frames per codec frame
    rank: int
    vocoder: VocoderConfig

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "TinyConfig":
        """Return the config with the fields in `record`; raise TypeError if a field is missing or unknown."""
        vocoder = VocoderConfig(**record.get("vocoder", {}))
        return cls(**{name: value for name, value in record.items() if name != "vocoder"}, vocoder=vocoder)


class TinyCodec(torch.nn.Module):
    """Bundled codec. The state is the phase of the pulse train in cycles, float64 [B, 1]."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.quantiser = ResidualVQ(
            config.mel_frames * NUM_MELS, config.rank, config.num_codebooks, config.codebook_size
        )
        self.vocoder = Vocoder(config.vocoder)
        self.spec = CodecSpec(
            name="tiny",
            sample_rate=SAMPLE_RATE,
            samples_per_frame=config.mel_frames * HOP,
            num_codebooks=config.num_codebooks,
            codebook_size=config.codebook_size,
            streaming=Stateful(
                left=-(-self.vocoder.left // config.mel_frames), right=-(-self.vocoder.right // config.mel_frames)
            ),
        )

    @property
    def device(self) -> torch.device:
        return self.quantiser.mean.device

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Return codes, int64 [K, T], of mono samples, float32 [n] at 16 kHz; the last frame is padded with silence."""
        samples = torch.from_numpy(np.asarray(pcm, dtype=np.float32)).to(self.device)
        if len(samples) == 0:
            return np.zeros((self.spec.num_codebooks, 0), dtype=np.int64)
        samples = F.pad(samples, (0, -len(samples) % self.spec.samples_per_frame))
        stacked = log_mel(samples).reshape(-1, self.config.mel_frames * NUM_MELS)
        return self.quantiser.encode(stacked).T[: self.spec.num_codebooks].cpu().numpy()

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 1, dtype=torch.float64, device=self.device)

    @torch.inference_mode()
    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        """Return samples, float32 [B, n] in [-1, 1], of frames [first, last), and the phase after them."""
        mels, frames = self.config.mel_frames, window.codes.shape[2] - window.right
        stacked = self.quantiser.decode(window.codes.to(self.device))
        mel = stacked.unflatten(2, (mels, NUM_MELS)).flatten(1, 2)
        position = window.first.to(self.device) * self.spec.samples_per_frame
        pcm, phase = self.vocoder(mel, window.left * mels, frames * mels, position, window.state[:, 0])
        return pcm.clamp(-1, 1), phase[:, None] % 1.0


def load(directory: Path, device: str = "cpu") -> TinyCodec:
    """Load the codec from `directory`; raise CheckpointError if files or tensors are missing or do not match."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory / name} is missing")
    try:
        config = TinyConfig.from_record(json_object(directory / CONFIG_FILE))
    except UNPARSABLE as error:
        raise CheckpointError(f"{directory / CONFIG_FILE}: {error}") from error
    codec = TinyCodec(config)
    load_strictly(codec, read_tensors(directory / WEIGHTS_FILE), directory / WEIGHTS_FILE)
    codec.eval().requires_grad_(False)
    codec.vocoder.pitch_trunk.double()
    return codec.to(device)
