"""The audio encoder equals transformers' encoder, except that it keeps features that transformers drops."""

import pytest
import torch
from torch import nn
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

from stretto.family.log_mel import MelFormat
from stretto.family.log_mel_encoder import audio_tower, embed_audio

SIZES = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 8, "d_model": 8, "output_dim": 8}
LENGTHS = (1, 7, 99, 100, 101, 250, 1000, 1777)


def tower(n_window: int) -> Qwen3OmniMoeAudioEncoder:
    torch.manual_seed(0)
    return audio_tower(
        {**SIZES, "num_mel_bins": 8, "downsample_hidden_size": 4, "n_window": n_window, "n_window_infer": 8 * n_window}
    )


@pytest.mark.parametrize("n_window", [50, 100])
@torch.no_grad()
def test_number_of_audio_rows_matches_the_format(n_window: int) -> None:
    encoder = tower(n_window)
    for num_frames in LENGTHS:
        rows = embed_audio(encoder, nn.Linear(8, 3), torch.randn(num_frames, 8))
        assert rows.shape == (MelFormat(8, n_window).num_rows(num_frames), 3), num_frames


@torch.no_grad()
def test_published_window_rows_match_transformers() -> None:
    encoder, adaptor = tower(50), nn.Identity()
    for num_frames in LENGTHS:
        features = torch.randn(num_frames, 8)
        own = encoder(features.T, feature_lens=torch.tensor([num_frames])).last_hidden_state
        torch.testing.assert_close(embed_audio(encoder, adaptor, features), own, rtol=0, atol=0)


@torch.no_grad()
def test_audio_tower_windows_are_independent() -> None:
    encoder, features = tower(50), torch.randn(800, 8)
    changed = features.clone()
    changed[:400] += 1.0
    before, after = (embed_audio(encoder, nn.Identity(), each) for each in (features, changed))
    assert (before[:52] != after[:52]).any()
    torch.testing.assert_close(before[52:], after[52:], rtol=0, atol=0)
