"""Pulse and noise sources of the vocoder, as functions of the absolute sample position.

No sample depends on where a window begins. Pulses use the phase carried from window to window, and noise is read from a
fixed table at the position modulo its length.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stretto.codec.tiny.mel import HOP, SAMPLE_RATE

HIGHEST_HARMONIC_HZ = 7800.0
LOWEST_HZ, HIGHEST_HZ = 50.0, 500.0
PHASE_STEP = 2.0**-48  # cycles
NOISE_PERIOD = 1 << 17  # samples: 8 s, too long for an audible repetition


def upsample(frames: Tensor, neighbours: Tensor) -> Tensor:
    """Interpolate [B, T] to [B, T * HOP], linearly between the centres of frames.

    Every frame has the same weights. torch's `interpolate` rounds positions less precisely the later they are.

    Args:
        frames: Values per frame.
        neighbours: `neighbour_weights()` on the device of the frames.
    """
    padded = F.pad(frames[:, None], (1, 1), mode="replicate")[:, 0]
    return (padded.unfold(1, 3, 1) @ neighbours.to(frames.dtype)).flatten(1)


def neighbour_weights() -> Tensor:
    """Return the weights of the previous, current and next frame in each sample, float64 [3, HOP]."""
    places = (torch.arange(HOP, dtype=torch.float64) + 0.5) / HOP - 0.5
    return torch.stack([(-places).clamp(min=0), 1 - places.abs(), places.clamp(min=0)])


def cycles(pitch_hz: Tensor) -> Tensor:
    """Return the phase around each sample in cycles, [B, T * HOP + 1], for pitch float64 [B, T * HOP].

    Whole cycles are dropped at frame starts. Frames are summed in integer multiples of PHASE_STEP, so the result is
    exact in any order (int64 overflow drops whole cycles, too), and phases do not depend on windows.
    """
    within = F.pad((pitch_hz / SAMPLE_RATE).unflatten(1, (-1, HOP)).cumsum(2), (1, 0))
    steps = (within[:, :, -1] / PHASE_STEP).round().long().cumsum(1)
    starts = F.pad(steps, (1, 0)).remainder(round(1 / PHASE_STEP)).double() * PHASE_STEP
    return torch.cat([(starts[:, :-1, None] + within[:, :, :-1]).flatten(1), starts[:, -1:]], dim=1)


def pulses(phase: Tensor, pitch_hz: Tensor) -> Tensor:
    """Return a band-limited pulse train of unit power for phase in cycles [B, n] and pitch [B, n], both float64.

    With x = HIGHEST_HARMONIC_HZ / pitch and K = floor(x), this is the sum of cos(2 pi k phase) for k = 1 … K in closed
    form (Dirichlet's kernel), plus harmonic K + 1 with weight x - K, so that it is continuous in the pitch.
    """
    number = HIGHEST_HARMONIC_HZ / pitch_hz
    whole = number.floor()
    half = math.pi * (phase - phase.round())  # small at a peak, and so is its rounding
    sine = half.sin()
    at_peak = sine.abs() < 1e-7
    ratio = ((2 * whole + 1) * half).sin() / torch.where(at_peak, torch.ones_like(sine), sine)
    kernel = torch.where(at_peak, 2 * whole + 1, ratio) - 1
    kernel = kernel / 2 + (number - whole) * (2 * (whole + 1) * half).cos()
    return kernel * (2 / number).sqrt()


def noise_table() -> Tensor:
    """Return uniform noise of unit power, float32 [NOISE_PERIOD], from an integer hash, equal on every machine."""
    with np.errstate(over="ignore"):
        mixed = np.arange(1, NOISE_PERIOD + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64's finaliser
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    unit = (mixed >> np.uint64(40)).astype(np.float64) / (1 << 24)
    return torch.from_numpy((unit - 0.5) * math.sqrt(12)).float()
