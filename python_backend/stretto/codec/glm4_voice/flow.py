"""From speech tokens to a mel spectrogram: conditional flow matching (Lipman et al., arXiv 2210.02747), guided.

tokens ─► conformer ─► regulator ─► μ [B, M, T]
noise [M, T] ─► 10 Euler steps along estimator(state, μ, speaker, prompt) ─► mel [B, M, T]
"""

import math

import torch
from torch import Tensor, nn

from stretto.codec.glm4_voice.config import STEPS, Glm4VoiceConfig
from stretto.codec.glm4_voice.conformer import BlockConformer, LengthRegulator
from stretto.codec.glm4_voice.estimator import Estimator


class Matching(nn.Module):
    """The estimator under its published name, and its times. guidance: of Ho and Salimans, (1 + g) with - g without."""

    waves: Tensor

    def __init__(self, config: Glm4VoiceConfig) -> None:
        super().__init__()
        self.estimator = Estimator(config.mels, config.estimator)
        self.guidance = config.guidance
        times = 1 - torch.cos(torch.linspace(0, 1, STEPS + 1, dtype=torch.float64) * 0.5 * math.pi)
        self.strides = times.diff().tolist()
        self.register_buffer("waves", waves_of_time(times[:-1], 4 * config.mels), persistent=False)

    def forward(self, noise: Tensor, goal: Tensor, speaker: Tensor, prompt: Tensor) -> Tensor:
        """All [B, M, T]; the second half of a batch is estimated without goal, speaker and prompt."""
        told = torch.cat([goal, speaker, prompt], 1)
        told = torch.cat([told, torch.zeros_like(told)])
        state = noise
        for waves, stride in zip(self.waves.to(noise.dtype), self.strides, strict=True):
            flow, free = self.estimator(torch.cat([state.repeat(2, 1, 1), told], 1), waves).chunk(2)
            state = state + stride * ((1 + self.guidance) * flow - self.guidance * free)
        return state


def waves_of_time(times: Tensor, width: int) -> Tensor:
    """Sines and cosines [n, width] of times [n] in [0, 1], as Matcha's `SinusoidalPosEmb` has them."""
    frequencies = torch.exp(torch.arange(width // 2).float() * -(math.log(10_000) / (width // 2 - 1)))
    angle = 1000 * times[:, None] * frequencies.to(times.dtype)
    return torch.cat([angle.sin(), angle.cos()], 1)


class Flow(nn.Module):
    """Tensors are named as in the published `flow.pt`."""

    def __init__(self, config: Glm4VoiceConfig) -> None:
        super().__init__()
        self.input_embedding = nn.Embedding(config.codebook_size, config.token_width)
        self.spk_embed_affine_layer = nn.Linear(config.speaker, config.mels)
        self.encoder = BlockConformer(config.token_width, config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.width, config.mels)
        self.length_regulator = LengthRegulator(config.mels, config.regulator)
        self.decoder = Matching(config)

    def goal(self, tokens: Tensor, frames: int) -> Tensor:
        """μ [B, M, frames] of tokens [B, T]."""
        return self.length_regulator(self.encoder_proj(self.encoder(self.input_embedding(tokens))), frames)

    def forward(self, tokens: Tensor, noise: Tensor, prompt: Tensor) -> Tensor:
        """Mel [B, M, frames] of tokens [B, T] from noise [M, frames], which goes on from the prompt [B, M, n].

        The speaker is nobody: a vector of zeros, of which the bias is left.
        """
        goal = self.goal(tokens, noise.shape[1])
        known = nn.functional.pad(prompt, (0, noise.shape[1] - prompt.shape[2]))
        speaker = self.spk_embed_affine_layer.bias[:, None].expand_as(goal)
        return self.decoder(noise.expand_as(goal), goal, speaker, known)
