"""Resampling by a windowed sinc, in torch: what codecs that listen at another rate than they speak at need."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ZERO_CROSSINGS = 6  # of the sinc, on either side of its middle
ROLLOFF = 0.99  # cut-off as a part of the lower Nyquist frequency


def sinc_kernels(source_hz: int, target_hz: int) -> tuple[Tensor, int]:
    """One filter per output phase [target, width] float64, and how many samples it reaches back.

    Rates are in lowest terms. A Hann-windowed sinc (Smith, Digital Audio Resampling): h(t) = b sinc(b t)
    cos(pi b t / 2N)^2 for |b t| < N, in input samples, with b = ROLLOFF * min(1, target / source) and
    N = ZERO_CROSSINGS.
    """
    cutoff = ROLLOFF * min(source_hz, target_hz) / source_hz
    back = math.ceil(ZERO_CROSSINGS / cutoff)
    taps = torch.arange(-back, back + source_hz, dtype=torch.float64)
    phase = torch.arange(target_hz, dtype=torch.float64) * source_hz / target_hz
    time = ((taps - phase[:, None]) * cutoff).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)  # beyond it the window is zero
    window = (time * math.pi / (2 * ZERO_CROSSINGS)).cos().square()
    return cutoff * torch.sinc(time) * window, back


def resample(pcm: Tensor, source_hz: int, target_hz: int) -> Tensor:
    """Pcm [B, n] at source_hz as [B, ceil(n * target_hz / source_hz)] at target_hz; silence lies around it."""
    divisor = math.gcd(source_hz, target_hz)
    source_hz, target_hz = source_hz // divisor, target_hz // divisor
    if source_hz == target_hz:
        return pcm
    kernels, back = sinc_kernels(source_hz, target_hz)
    kernels = kernels.to(pcm)[:, None]
    padded = F.pad(pcm[:, None], (back, back + source_hz))
    phases = F.conv1d(padded, kernels, stride=source_hz)
    return phases.transpose(1, 2).flatten(1)[:, : -(-pcm.shape[1] * target_hz // source_hz)]
