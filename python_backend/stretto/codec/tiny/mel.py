"""Log-mel spectrogram of 16 kHz speech, the input of the quantiser."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLE_RATE = 16_000
HOP = 160
WINDOW = 400
FFT_SIZE = 512
NUM_MELS = 64
FLOOR = 1e-4  # lower bound of mel magnitudes
LOWEST_HZ, HIGHEST_HZ = 40.0, 7800.0


def _mel_of(hz: float) -> float:
    return 2595 * math.log10(1 + hz / 700)


def _hz_of(mel: float) -> float:
    return 700 * (10 ** (mel / 2595) - 1)


def mel_filters() -> Tensor:
    """Return triangular mel filters [NUM_MELS, FFT_SIZE // 2 + 1], each summing to 1."""
    low, high = _mel_of(LOWEST_HZ), _mel_of(HIGHEST_HZ)
    edges = [_hz_of(low + (high - low) * i / (NUM_MELS + 1)) for i in range(NUM_MELS + 2)]
    bins_hz = torch.linspace(0, SAMPLE_RATE / 2, FFT_SIZE // 2 + 1)
    filters = torch.zeros(NUM_MELS, len(bins_hz))
    for band, (left, centre, right) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        rising, falling = (bins_hz - left) / (centre - left), (right - bins_hz) / (right - centre)
        filters[band] = torch.minimum(rising, falling).clamp(min=0)
        if filters[band].sum() == 0:  # a band narrower than a bin uses the nearest one
            filters[band, (bins_hz - centre).abs().argmin()] = 1
    return filters / filters.sum(1, keepdim=True)


def band_centres() -> Tensor:
    """Return the mean FFT bin of each band, [NUM_MELS]."""
    return mel_filters() @ torch.arange(FFT_SIZE // 2 + 1.0)


def log_mel(pcm: Tensor) -> Tensor:
    """Return log-mel frames [..., n // HOP, NUM_MELS] of pcm [..., n].

    Frame i is centred on sample i * HOP + HOP / 2.
    """
    margin = (FFT_SIZE - HOP) // 2
    framed = F.pad(pcm, (margin, margin))
    window = torch.hann_window(WINDOW, device=pcm.device)
    spectrum = torch.stft(framed, FFT_SIZE, HOP, WINDOW, window, center=False, return_complex=True).abs()
    return (mel_filters().to(pcm.device) @ spectrum).clamp(min=FLOOR).log().transpose(-1, -2)
