"""Conditional flow matching (Lipman et al., arXiv 2210.02747) with guidance: noise to mel in Euler steps."""

import math

import torch
from torch import Tensor, nn

from stretto.codec.cosyvoice.estimator import Estimator
from stretto.codec.cosyvoice.shapes import EstimatorShape

STEPS = 10  # as in the authors' flow.py and flow_matching.py


class Matching(nn.Module):
    """Estimator under its published name, and the time steps.

    Guidance g (Ho and Salimans): (1 + g) conditional - g unconditional.
    """

    waves: Tensor

    def __init__(self, mels: int, shape: EstimatorShape, guidance: float) -> None:
        super().__init__()
        self.estimator = Estimator(mels, shape)
        self.guidance = guidance
        even = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64, device="cpu")  # works on the meta device, too
        times = 1 - torch.cos(even * 0.5 * math.pi)
        self.strides = times.diff().tolist()
        self.register_buffer("waves", waves_of_time(times[:-1], 4 * mels), persistent=False)

    def forward(self, noise: Tensor, goal: Tensor, speaker: Tensor, prompt: Tensor) -> Tensor:
        """Return the mel spectrogram.

        All arguments are [B, M, T]. Unconditional estimates omit goal, speaker and prompt.
        """
        told = torch.cat([goal, speaker, prompt], 1)
        told = torch.cat([told, torch.zeros_like(told)])
        state = noise
        for waves, stride in zip(self.waves.to(noise.dtype), self.strides, strict=True):
            flow, free = self.estimator(torch.cat([state.repeat(2, 1, 1), told], 1), waves).chunk(2)
            state = state + stride * ((1 + self.guidance) * flow - self.guidance * free)
        return state


def waves_of_time(times: Tensor, width: int) -> Tensor:
    """Return sines and cosines [n, width] of times [n] in [0, 1], as Matcha's `SinusoidalPosEmb`."""
    place = torch.arange(width // 2, device=times.device).float()
    frequencies = torch.exp(place * -(math.log(10_000) / (width // 2 - 1)))
    angle = 1000 * times[:, None] * frequencies.to(times.dtype)
    return torch.cat([angle.sin(), angle.cos()], 1)
