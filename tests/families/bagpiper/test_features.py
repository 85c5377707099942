"""Features equal those of Bagpiper's training: Whisper features of the unpadded waveform."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
    Qwen3OmniMoeAudioEncoder,
    _get_feat_extract_output_lengths,
)

from stretto.family.log_mel import SHORTEST, MelFormat, log_mel
from stretto.family.log_mel_encoder import audio_tower, embed_audio
from tests.tiers import by_night

pytestmark = pytest.mark.slow

PCM = (0.1 * np.sin(np.arange(16_123) * 0.05) + 0.02).astype(np.float32)
NORMALISED = MelFormat(128, do_normalize=True)
MELS = mel_filter_bank(201, 128, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")


def as_espnet_hears(pcm: np.ndarray) -> np.ndarray:
    """Compute features [F, 128] as in ESPnet's `ContinuousAudioIO.preprocess`, frame by frame, in float64.

    It pads to the waveform's own length, that is, not at all. Whisper's extractor reflects 200 samples at both ends and
    drops the last frame; of the others n // 160 count.
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
def test_features_of_any_audio_length_match_training(whole: int) -> None:
    """Lengths up to two and a half frames, with and without a second before them, give equal frames."""
    for extra in range(1, 401):
        if whole + extra < SHORTEST:
            continue
        pcm = speech(whole + extra)
        expected, features = as_espnet_hears(pcm), log_mel(pcm, NORMALISED)
        assert features.shape == expected.shape == ((whole + extra) // 160, 128), whole + extra
        np.testing.assert_allclose(features, expected, atol=1e-3, err_msg=str(whole + extra))


@pytest.fixture(scope="module")
def tower() -> Qwen3OmniMoeAudioEncoder:
    torch.manual_seed(0)
    sizes = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 8, "d_model": 8, "output_dim": 8}
    return audio_tower(
        {**sizes, "num_mel_bins": 128, "downsample_hidden_size": 4, "n_window": 50, "n_window_infer": 400}
    )


@pytest.mark.parametrize("num_samples", [201, 400, 7919, 16_001, *by_night(399, 401, 1599, 15_999, 47_993, 480_001)])
@torch.no_grad()
def test_audio_tower_rows_match_transformers(tower: Qwen3OmniMoeAudioEncoder, num_samples: int) -> None:
    """The extractor's settings and the cut equal those of ESPnet's `ContinuousAudioIO.preprocess`."""
    pcm, num_frames = speech(num_samples), num_samples // 160
    made = WhisperFeatureExtractor(feature_size=128)(
        [pcm],
        truncation=False,
        return_tensors="pt",
        do_normalize=True,
        max_length=num_samples,
        return_attention_mask=True,
        sampling_rate=16_000,
    )
    mel = made["input_features"][0, :, :num_frames]
    wanted = tower(mel, feature_lens=torch.tensor([num_frames])).last_hidden_state
    features = log_mel(pcm, NORMALISED)
    np.testing.assert_array_equal(features, mel.T.numpy())
    rows = embed_audio(tower, nn.Identity(), torch.from_numpy(features))
    assert len(rows) == NORMALISED.num_rows(num_frames) == _get_feat_extract_output_lengths(num_frames)
    torch.testing.assert_close(rows, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("num_samples", [480_000, 479_999])
def test_thirty_seconds_of_audio_are_encoded_completely(num_samples: int) -> None:
    pcm = speech(num_samples)
    expected = as_espnet_hears(pcm)
    assert len(expected) == num_samples // 160
    np.testing.assert_allclose(log_mel(pcm, NORMALISED), expected, atol=2e-4)


def test_features_are_finite_float32() -> None:
    features = log_mel(PCM, MelFormat(128, do_normalize=False))
    assert features.shape == (100, 128)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()


def test_normalised_features_are_independent_of_level() -> None:
    loud, quiet = (log_mel(PCM * scale, NORMALISED) for scale in (1.0, 0.1))
    np.testing.assert_allclose(loud, quiet, atol=1e-3)
    raw = log_mel(PCM * 0.1, MelFormat(128, do_normalize=False))
    assert np.abs(raw - quiet).max() > 0.1
