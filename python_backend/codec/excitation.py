"""The two sources of a voice: pulses at the pitch, and noise. Both are functions of the absolute sample position.

No sample depends on where a window begins: the pulses take the phase carried from window to window, and the noise is
read from a fixed table at the position modulo its length.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from python_backend.codec.mel import HOP, SAMPLE_RATE

HIGHEST_HARMONIC_HZ = 7800.0
LOWEST_HZ, HIGHEST_HZ = 50.0, 500.0
NOISE_PERIOD = 1 << 17  # samples: 8 s, far beyond what an ear takes for a repetition


def upsample(frames: Tensor) -> Tensor:
    """[B, T] to [B, T * HOP], linear between the middles of frames; sample n depends on the frame before or after."""
    return F.interpolate(frames[:, None], scale_factor=HOP, mode="linear", align_corners=False)[:, 0]


def cycles(pitch_hz: Tensor) -> Tensor:
    """Cycles completed before each sample, and after the last: [B, n + 1] for pitch [B, n]."""
    return F.pad((pitch_hz / SAMPLE_RATE).cumsum(1), (1, 0))


def pulses(phase: Tensor, pitch_hz: Tensor) -> Tensor:
    """A train of band-limited pulses of power 1: phase in cycles [B, n] and pitch [B, n], both float64.

    With x = HIGHEST_HARMONIC_HZ / pitch and K = floor(x), the sum of cos(2 pi k phase) for k = 1 … K in closed form
    (Dirichlet's kernel), plus harmonic K + 1 with weight x - K, so that it is continuous in the pitch.
    """
    number = HIGHEST_HARMONIC_HZ / pitch_hz
    whole = number.floor()
    half = math.pi * (phase - phase.floor())
    sine = half.sin()
    at_peak = sine.abs() < 1e-7
    ratio = ((2 * whole + 1) * half).sin() / torch.where(at_peak, torch.ones_like(sine), sine)
    kernel = torch.where(at_peak, 2 * whole + 1, ratio) - 1
    kernel = kernel / 2 + (number - whole) * (2 * (whole + 1) * half).cos()
    return kernel * (2 / number).sqrt()


def noise_table() -> Tensor:
    """White noise of power 1 [NOISE_PERIOD] float32, uniform, from an integer hash: the same on every machine."""
    with np.errstate(over="ignore"):
        mixed = np.arange(1, NOISE_PERIOD + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64's finaliser
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    unit = (mixed >> np.uint64(40)).astype(np.float64) / (1 << 24)
    return torch.from_numpy((unit - 0.5) * math.sqrt(12)).float()
