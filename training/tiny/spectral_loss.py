"""Perceptual distance between two waveforms, from log magnitudes at several resolutions."""

from functools import cache

import torch
from torch import Tensor

RESOLUTIONS = (128, 256, 512, 1024, 2048)
QUIET = 2e-3  # magnitude, relative to the window sum, below which audio counts as silence


@cache
def _window(size: int, device: torch.device) -> Tensor:
    return torch.hann_window(size, device=device)


def magnitudes(pcm: Tensor, size: int, hop: int) -> Tensor:
    """Return the spectrogram [B, bins, T] of pcm [B, n], in which a sine has the same magnitude for every `size`."""
    window = _window(size, pcm.device)
    spectrum = torch.stft(pcm, size, hop, size, window, center=False, return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square() + 1e-12).sqrt() * (64 / window.sum())


def resolution_loss(heard: Tensor, wanted: Tensor, size: int) -> Tensor:
    """Return the mean log-magnitude distance plus half the relative error, at one window size."""
    a = magnitudes(heard, size, size // 4)
    b = magnitudes(wanted, size, size // 4)
    logs = ((a + QUIET).log() - (b + QUIET).log()).abs().mean()
    return logs + 0.5 * (a - b).norm() / b.norm().clamp(min=1e-3)


def spectral_loss(heard: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean loss over the resolutions."""
    return torch.stack([resolution_loss(heard, wanted, size) for size in RESOLUTIONS]).mean()
