import math

import torch

from stretto.codecs.tiny.codec import SAMPLE_RATE
from training.tiny.spectral_loss import RESOLUTIONS, magnitudes, spectral_loss


def tone(hz: float) -> torch.Tensor:
    return 0.3 * (2 * math.pi * hz * torch.arange(12_000) / SAMPLE_RATE).sin()[None]


def test_sine_magnitude_is_equal_at_every_resolution() -> None:
    heights = [magnitudes(tone(1000), size, size // 4).max().item() for size in RESOLUTIONS]
    assert max(heights) - min(heights) < 0.1 * max(heights)


def test_spectral_loss_is_zero_for_equal_audio_and_grows() -> None:
    assert spectral_loss(tone(1000), tone(1000)) == 0
    assert 0 < spectral_loss(0.9 * tone(1000), tone(1000)) < spectral_loss(tone(1400), tone(1000))


def test_spectral_loss_ignores_phase_shifts() -> None:
    shifted = 0.3 * (2 * math.pi * 1000 * torch.arange(12_000) / SAMPLE_RATE + 1.0).sin()[None]
    assert spectral_loss(shifted, tone(1000)) < 0.1 * spectral_loss(tone(1400), tone(1000))
