"""Alterations of recordings."""

import numpy as np
import pytest

from stretto.codecs.tiny.codec import SAMPLE_RATE
from training.tiny.alterations import Alteration, coded, inverted, louder, noisy, resampled, without_bass


def tones(*hz: float) -> np.ndarray:
    times = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    return np.stack([0.2 * np.sin(2 * np.pi * each * times) for each in hz]).sum(0).astype(np.float32)


def level(pcm: np.ndarray, hz: float) -> float:
    """Return the amplitude of a tone in the middle of one second."""
    inner = slice(SAMPLE_RATE // 4, SAMPLE_RATE * 3 // 4)
    times = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    return 2 * abs(np.mean(pcm[inner] * np.exp(-2j * np.pi * hz * times[inner])))


@pytest.mark.parametrize(
    "alter",
    [
        pytest.param(coded("pcm_mulaw", "wav", 8000), id="mu-law"),
        pytest.param(coded("mp3", "mp3", bit_rate=32_000), id="mp3"),
        pytest.param(coded("libopus", "ogg", bit_rate=32_000), id="opus"),
        pytest.param(resampled(11_000), id="resampled"),
        pytest.param(without_bass(100), id="without bass"),
        pytest.param(noisy(-40, np.random.default_rng(0)), id="noisy"),
    ],
)
def test_altered_recording_is_neither_shifted_nor_longer(alter: Alteration) -> None:
    pcm = tones(301, 517, 1103)
    altered = alter(pcm)
    assert altered.dtype == np.float32
    assert len(altered) == len(pcm)
    assert np.corrcoef(pcm, altered)[0, 1] > 0.95
    assert not np.array_equal(pcm, altered)


def test_lower_sample_rate_removes_high_tones_only() -> None:
    altered = resampled(8000)(tones(500, 6000))
    assert level(altered, 500) == pytest.approx(0.2, rel=0.05)
    assert level(altered, 6000) < 0.002


def test_bass_is_removed() -> None:
    altered = without_bass(300)(tones(100, 1000))
    assert level(altered, 100) < 0.002
    assert level(altered, 1000) == pytest.approx(0.2, rel=0.05)


def test_level_and_sign_change_and_loud_samples_are_clipped() -> None:
    pcm = np.array([0.1, -0.5, 0.9], np.float32)
    np.testing.assert_allclose(louder(-20)(pcm), pcm / 10, rtol=1e-5)
    np.testing.assert_allclose(louder(20)(pcm), [1, -1, 1])
    np.testing.assert_array_equal(inverted(pcm), -pcm)
