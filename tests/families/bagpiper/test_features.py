"""Features are those that Bagpiper was trained with: Whisper's, of the waveform as it ends."""

import numpy as np
import pytest
from transformers.audio_utils import mel_filter_bank

from stretto.families.audio_format import MelFormat
from stretto.families.bagpiper.prompt import SHORTEST, log_mel

pytestmark = pytest.mark.slow

PCM = (0.1 * np.sin(np.arange(16_123) * 0.05) + 0.02).astype(np.float32)
NORMALISED = MelFormat(128, do_normalize=True)
MELS = mel_filter_bank(201, 128, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")


def as_espnet_hears(pcm: np.ndarray) -> np.ndarray:
    """[F, 128] as `ContinuousAudioIO.preprocess` of ESPnet has them, one frame at a time, in float64.

    It pads to the waveform's own length, which is to say not at all; Whisper's extractor mirrors 200 samples at both
    ends and drops the last frame; of the others n // 160 count.
    """
    x = pcm.astype(np.float64)
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-7)
    mirrored = np.concatenate([x[200:0:-1], x, x[-2:-202:-1]])
    window = np.sin(np.pi * np.arange(400) / 400) ** 2
    power = [np.abs(np.fft.rfft(mirrored[160 * t : 160 * t + 400] * window)) ** 2 for t in range(len(pcm) // 160)]
    log = np.log10(np.maximum(np.array(power) @ MELS, 1e-10))
    return (np.maximum(log, log.max() - 8.0) + 4.0) / 4.0


def speech(num_samples: int) -> np.ndarray:
    draw, time = np.random.default_rng(num_samples), np.arange(num_samples) / 16_000
    tone = 0.2 * np.sin(2 * np.pi * (150 + 600 * time) * time)
    return (tone + 0.05 * draw.standard_normal(num_samples)).astype(np.float32)


@pytest.mark.parametrize("whole", [0, 16_000])
def test_audio_of_every_length_ends_as_in_training(whole: int) -> None:
    """Each length within two and a half frames, alone and behind a second: as many frames, the last one too."""
    for extra in range(1, 401):
        if whole + extra < SHORTEST:
            continue
        pcm = speech(whole + extra)
        expected, features = as_espnet_hears(pcm), log_mel(pcm, NORMALISED)
        assert features.shape == expected.shape == ((whole + extra) // 160, 128), whole + extra
        np.testing.assert_allclose(features, expected, atol=2e-4, err_msg=str(whole + extra))


@pytest.mark.parametrize("num_samples", [480_000, 479_999])
def test_thirty_seconds_are_heard_to_their_end(num_samples: int) -> None:
    pcm = speech(num_samples)
    expected = as_espnet_hears(pcm)
    assert len(expected) == num_samples // 160
    np.testing.assert_allclose(log_mel(pcm, NORMALISED), expected, atol=2e-4)


def test_features_are_finite_numbers_in_float32() -> None:
    features = log_mel(PCM, MelFormat(128, do_normalize=False))
    assert features.shape == (100, 128)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()


def test_a_normalised_waveform_s_level_does_not_matter() -> None:
    loud, quiet = (log_mel(PCM * scale, NORMALISED) for scale in (1.0, 0.1))
    np.testing.assert_allclose(loud, quiet, atol=1e-3)
    raw = log_mel(PCM * 0.1, MelFormat(128, do_normalize=False))
    assert np.abs(raw - quiet).max() > 0.1
