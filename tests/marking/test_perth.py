"""The filter `perth`: gains, no delay, equal samples in every split, and its place in the decoder."""

import random

import numpy as np
import pytest

from stretto.config import DecoderConfig
from stretto.marking.marker import open_marker
from stretto.marking.perth import BAND_HZ, GAINS_DB, MARKER, taps

RATES = (8_000, 22_050, 48_000)


def sound(num_samples: int, seed: int = 0) -> np.ndarray:
    return (0.2 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def marked(parts: list[np.ndarray], sample_rate: int, frame: int) -> np.ndarray:
    stream = MARKER.stream(sample_rate, frame)
    return np.concatenate([stream.push(part, part is parts[-1]) for part in parts])


@pytest.mark.slow
@pytest.mark.parametrize("sample_rate", RATES)
def test_gain_of_each_band_is_that_of_the_published_mark(sample_rate: int) -> None:
    impulse = np.zeros(sample_rate, np.float32)
    impulse[0] = 1
    response = marked([impulse], sample_rate, 480)
    bands = BAND_HZ * np.arange(len(GAINS_DB))
    waves = np.exp(-2j * np.pi * np.outer(bands, np.arange(len(response))) / sample_rate)
    gains_db = 20 * np.log10(np.abs(waves @ response.astype(np.float64)))
    # The filter is too short, 32 ms, for the full contrast of neighbouring bands with opposite signs.
    assert np.abs(gains_db - GAINS_DB).max() < 1.5
    assert np.corrcoef(gains_db, GAINS_DB)[0, 1] > 0.95


@pytest.mark.parametrize("sample_rate", RATES)
def test_frequencies_above_two_kilohertz_and_the_delay_are_unchanged(sample_rate: int) -> None:
    response = taps(sample_rate)
    energy = np.square(response)
    assert energy[: sample_rate // 1000].sum() > 0.95 * energy.sum(), "within a millisecond"
    high = np.abs(np.fft.rfft(response, sample_rate))[2_200:]
    assert np.abs(20 * np.log10(high)).max() < 0.02


@pytest.mark.parametrize("frame", [160, 320, 1920])
@pytest.mark.parametrize("sample_rate", [16_000, 24_000])
def test_marked_samples_do_not_depend_on_the_chunks(sample_rate: int, frame: int) -> None:
    pcm, draw = sound(50 * frame + 7), random.Random(frame)
    whole = marked([pcm], sample_rate, frame)
    frames = [frame * each for each in sorted(draw.sample(range(1, 50), 12))]
    assert np.array_equal(marked(np.split(pcm, frames), sample_rate, frame), whole)
    ragged = marked(np.split(pcm, sorted(draw.choices(range(len(pcm)), k=20))), sample_rate, frame)
    np.testing.assert_allclose(ragged, whole, rtol=0, atol=1e-7)
    slow = np.convolve(pcm.astype(np.float64), taps(sample_rate))[: len(pcm)]
    np.testing.assert_allclose(whole, slow, rtol=0, atol=1e-6)


def test_silence_stays_silent_and_empty_parts_are_empty() -> None:
    stream = MARKER.stream(24_000, 480)
    assert len(stream.push(np.zeros(0, np.float32), False)) == 0
    assert not stream.push(np.zeros(1000, np.float32), False).any()
    assert len(stream.push(np.zeros(0, np.float32), True)) == 0
    assert stream.num_bytes < 16_384


def test_unknown_marker_is_refused_by_name() -> None:
    assert open_marker(DecoderConfig().marker) is None
    assert open_marker("perth") is MARKER
    with pytest.raises(ValueError, match=r"^marker: expected one of perth, got 'nobody'$"):
        open_marker("nobody")
