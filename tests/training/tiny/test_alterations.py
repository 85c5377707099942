"""Alterations of recordings."""

import numpy as np
import pytest

from stretto.codecs.tiny.codec import SAMPLE_RATE
from training.tiny.alterations import Alteration, coded, noisy, resampled, without_bass


def tones(*hz: float) -> np.ndarray:
    times = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    return np.stack([0.2 * np.sin(2 * np.pi * each * times) for each in hz]).sum(0).astype(np.float32)


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
