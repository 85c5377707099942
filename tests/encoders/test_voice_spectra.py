import math

import numpy as np
import pytest
import torch

from stretto.encoders.voice_spectra import ROLL_OFF, SINC_ZEROS, resample_by_sinc


def slow_resample(pcm: np.ndarray, source_hz: int, target_hz: int) -> np.ndarray:
    """Resample float64 [n] to [m] as a windowed-sinc sum over all input samples."""
    bandwidth = ROLL_OFF * min(1, target_hz / source_hz)
    out = np.zeros(math.ceil(len(pcm) * target_hz / source_hz))
    reach = math.ceil(SINC_ZEROS / bandwidth)
    for j in range(len(out)):
        near = np.arange(max(0, math.floor(j * source_hz / target_hz) - reach), len(pcm))[: 2 * reach + 2]
        distance = (near - j * source_hz / target_hz) * bandwidth
        inside = np.abs(distance) < SINC_ZEROS
        window = np.where(inside, np.cos(np.pi * distance / (2 * SINC_ZEROS)) ** 2, 0)
        out[j] = bandwidth * np.sum(pcm[near] * np.sinc(distance) * window)
    return out


@pytest.mark.parametrize("rates", [(24_000, 16_000), (16_000, 24_000), (44_100, 16_000), (8000, 8000)])
@pytest.mark.parametrize("length", [1, 5, 700])
def test_resampling_matches_the_windowed_sinc_sum(rates: tuple[int, int], length: int) -> None:
    pcm = np.random.default_rng(0).normal(0, 1, (2, length))
    resampled = resample_by_sinc(torch.from_numpy(pcm), *rates)
    for row, expected in zip(resampled.numpy(), pcm, strict=True):
        wanted = expected if rates[0] == rates[1] else slow_resample(expected, *rates)
        assert row.shape == wanted.shape
        assert np.abs(row - wanted).max() < 1e-12
