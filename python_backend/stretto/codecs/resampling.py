"""Resampling by a windowed sinc in torch, for codecs whose encoder and decoder have different rates."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ZERO_CROSSINGS = 6  # zero crossings of the sinc on either side
ROLLOFF = 0.99  # cut-off relative to the lower Nyquist frequency


def sinc_kernels(source_hz: int, target_hz: int) -> tuple[Tensor, int]:
    """Return one filter per output phase, float64 [target, width], and its reach back in samples.

    Rates are in lowest terms. The filter is a Hann-windowed sinc (Smith, Digital Audio Resampling): h(t) = b sinc(b t)
    cos(pi b t / 2N)^2 for |b t| < N, in input samples, with b = ROLLOFF * min(1, target / source) and
    N = ZERO_CROSSINGS.
    """
    cutoff = ROLLOFF * min(source_hz, target_hz) / source_hz
    back = math.ceil(ZERO_CROSSINGS / cutoff)
    taps = torch.arange(-back, back + source_hz, dtype=torch.float64)
    phase = torch.arange(target_hz, dtype=torch.float64) * source_hz / target_hz
    time = ((taps - phase[:, None]) * cutoff).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)  # the window is zero beyond
    window = (time * math.pi / (2 * ZERO_CROSSINGS)).cos().square()
    return cutoff * torch.sinc(time) * window, back


def resample(pcm: Tensor, source_hz: int, target_hz: int) -> Tensor:
    """Resample pcm [B, n] to [B, ceil(n * target_hz / source_hz)], assuming silence around it."""
    divisor = math.gcd(source_hz, target_hz)
    source_hz, target_hz = source_hz // divisor, target_hz // divisor
    if source_hz == target_hz:
        return pcm
    kernels, back = sinc_kernels(source_hz, target_hz)
    kernels = kernels.to(pcm)[:, None]
    padded = F.pad(pcm[:, None], (back, back + source_hz))
    phases = F.conv1d(padded, kernels, stride=source_hz)
    return phases.transpose(1, 2).flatten(1)[:, : -(-pcm.shape[1] * target_hz // source_hz)]
