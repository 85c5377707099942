"""Perceptual distance between two waveforms, from log magnitudes at several resolutions and from mel bands."""

from functools import cache

import torch
from torch import Tensor

from stretto.codecs.tiny.codec import FFT_SIZE, HOP, mel_filters

RESOLUTIONS = (192, 384, 768, 1536)
QUIET = 2e-3  # magnitude, relative to the window sum, below which audio counts as silence


@cache
def _window(size: int) -> Tensor:
    return torch.hann_window(size)


@cache
def _bands() -> Tensor:
    return mel_filters()


def magnitudes(pcm: Tensor, size: int, hop: int) -> Tensor:
    """Return the spectrogram [B, bins, T] of pcm [B, n]; a sine has the same magnitude at every window size."""
    window = _window(size)
    spectrum = torch.stft(pcm, size, hop, size, window, center=False, return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square() + 1e-12).sqrt() * (64 / window.sum())


def resolution_loss(heard: Tensor, wanted: Tensor, size: int) -> Tensor:
    """Return the mean log-magnitude distance plus half the relative error, at one window size."""
    a, b = magnitudes(heard, size, size // 4), magnitudes(wanted, size, size // 4)
    logs = ((a + QUIET).log() - (b + QUIET).log()).abs().mean()
    return logs + 0.5 * (a - b).norm() / b.norm().clamp(min=1e-3)


def band_loss(heard: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean distance between log-mel frames, which are computed every half hop."""
    a, b = (_bands() @ magnitudes(pcm, FFT_SIZE, HOP // 2) for pcm in (heard, wanted))
    return ((a + QUIET).log() - (b + QUIET).log()).abs().mean()


def spectral_loss(heard: Tensor, wanted: Tensor) -> Tensor:
    """Return the loss for training the vocoder's filters."""
    fine = torch.stack([resolution_loss(heard, wanted, size) for size in RESOLUTIONS]).mean()
    return fine + band_loss(heard, wanted)
