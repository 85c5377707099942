"""Converting a waveform chunk by chunk equals converting it as a whole."""

import random

import numpy as np
import pytest
import soxr

from stretto.codecs.base import CodecSpec, Windowed
from stretto.decoder.sessions import Renderer
from stretto.records.sampling import OutputForm

SPEC = CodecSpec("any", 16_000, 320, 2, 8, Windowed(1, 1))


def sound(num_samples: int) -> np.ndarray:
    return (0.3 * np.random.default_rng(num_samples).standard_normal(num_samples)).astype(np.float32)


def in_parts(pcm: np.ndarray, renderer: Renderer, seed: int) -> list[np.ndarray | None]:
    cuts = sorted(random.Random(seed).choices(range(len(pcm) + 1), k=9))
    parts = np.split(pcm, cuts)
    return [renderer.resample(part if len(part) else None, part is parts[-1]) for part in parts]


@pytest.mark.parametrize("sample_rate", [8_000, 22_050, 24_000, 48_000])
@pytest.mark.parametrize("num_samples", [1, 319, 40_001])
def test_chunked_resampling_equals_one_pass(sample_rate: int, num_samples: int) -> None:
    pcm = sound(num_samples)
    parts = in_parts(pcm, Renderer(OutputForm(sample_rate=sample_rate), SPEC), num_samples)
    whole = soxr.resample(pcm, SPEC.sample_rate, sample_rate)
    assert np.array_equal(np.concatenate([part for part in parts if part is not None]), np.clip(whole, -1, 1))
    assert abs(len(whole) - num_samples * sample_rate / SPEC.sample_rate) <= 0.5


@pytest.mark.parametrize("sample_rate", [None, 16_000])
def test_samples_at_the_codec_rate_are_unchanged(sample_rate: int | None) -> None:
    renderer, pcm = Renderer(OutputForm(sample_rate=sample_rate), SPEC), sound(100)
    assert renderer.sample_rate == 16_000
    assert renderer.encode(renderer.resample(pcm, False)) is pcm
    assert renderer.encode(renderer.resample(None, True)) is None


def test_resampler_is_flushed_at_the_end() -> None:
    renderer = Renderer(OutputForm(sample_rate=48_000), SPEC)
    assert renderer.resample(sound(10), False) is None
    assert renderer.resample(None, False) is None
    assert len(renderer.resample(None, True)) == 30


def test_pcm_s16_samples_are_rounded_to_nearest() -> None:
    renderer = Renderer(OutputForm("pcm_s16le"), SPEC)
    encoded = renderer.encode(np.array([-1.0, 0.0, 0.4 / 32_767, 0.6 / 32_767, 1.0], np.float32))
    assert encoded.dtype == np.int16
    assert encoded.tolist() == [-32_767, 0, 0, 1, 32_767]


def test_resampler_overshoot_is_clipped_to_full_scale() -> None:
    square = np.sign(np.sin(np.arange(4_000) / 20)).astype(np.float32)
    resampled = Renderer(OutputForm(sample_rate=24_000), SPEC).resample(square, True)
    assert np.abs(resampled).max() == 1
    assert np.abs(soxr.resample(square, 16_000, 24_000)).max() > 1.01
