"""Conditional flow matching (Lipman et al., arXiv 2210.02747), guided: noise to a mel spectrogram in Euler steps."""

import math

import torch
from torch import Tensor, nn

from stretto.codec.cosyvoice.estimator import Estimator
from stretto.codec.cosyvoice.shapes import EstimatorShape

STEPS = 10  # as flow.py and flow_matching.py pass them


class Matching(nn.Module):
    """The estimator under its published name, and its times. guidance: of Ho and Salimans, (1 + g) with - g without."""

    waves: Tensor

    def __init__(self, mels: int, shape: EstimatorShape, guidance: float) -> None:
        super().__init__()
        self.estimator = Estimator(mels, shape)
        self.guidance = guidance
        even = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64, device="cpu")  # also of a module without contents
        times = 1 - torch.cos(even * 0.5 * math.pi)
        self.strides = times.diff().tolist()
        self.register_buffer("waves", waves_of_time(times[:-1], 4 * mels), persistent=False)

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
    place = torch.arange(width // 2, device=times.device).float()
    frequencies = torch.exp(place * -(math.log(10_000) / (width // 2 - 1)))
    angle = 1000 * times[:, None] * frequencies.to(times.dtype)
    return torch.cat([angle.sin(), angle.cos()], 1)
