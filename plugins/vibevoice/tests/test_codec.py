"""VibeVoice's tokenizers: chunks of any size give transformers' samples and latents; stretches start afresh."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import VibeVoiceAcousticTokenizerConfig, VibeVoiceAcousticTokenizerModel
from transformers.models.vibevoice_acoustic_tokenizer.feature_extraction_vibevoice_acoustic_tokenizer import (
    VibeVoiceAcousticTokenizerFeatureExtractor,
)

from plugins.vibevoice.tests.vibevoice_release import HOP, NUM_NUMBERS, OFFSET, SCALE, TOKENIZER, tensor
from stretto.codecs.base import load_codec
from stretto.errors import CheckpointError
from stretto.streams.layout import latents_of, words_of
from stretto_vibevoice.codec import LatentScale, TokenizerConfig, VibeVoiceCodec, published_name, stored_noise
from tests.codecs.streaming import decode_words


def published() -> VibeVoiceAcousticTokenizerModel:
    model = VibeVoiceAcousticTokenizerModel(VibeVoiceAcousticTokenizerConfig(**TOKENIZER)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensor(name, parameter.shape))
    return model


@pytest.fixture(scope="module")
def model() -> VibeVoiceAcousticTokenizerModel:
    return published()


@pytest.fixture(scope="module")
def codec(model: VibeVoiceAcousticTokenizerModel) -> VibeVoiceCodec:
    made = VibeVoiceCodec(TokenizerConfig.from_record(TOKENIZER), LatentScale(SCALE, OFFSET))
    stored = model.state_dict()
    assert len(stored) == len(made.state_dict())
    made.load_state_dict({name: stored[published_name(name)] for name in made.state_dict()})
    return made.eval().requires_grad_(False)


def words(latents: np.ndarray, begins: tuple[int, ...] = (0,)) -> torch.Tensor:
    """Return scaled latents [B, T, D] as words [B, K, T], with stretches that begin at the given frames."""
    marks = np.zeros((*latents.shape[:2], 1), np.float32)
    marks[:, list(begins)] = 1
    return torch.from_numpy(words_of(np.concatenate([latents, marks], 2)).astype(np.int64)).transpose(1, 2)


@pytest.fixture(scope="module")
def latents() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, 11, NUM_NUMBERS)).astype(np.float32)


def test_samples_match_the_authors(
    codec: VibeVoiceCodec, model: VibeVoiceAcousticTokenizerModel, latents: np.ndarray
) -> None:
    with torch.no_grad():
        scaled = torch.from_numpy(latents) / SCALE - OFFSET
        expected = model.decoder(scaled.transpose(1, 2)).audio[:, 0].clamp(-1, 1)
    pcm = decode_words(codec, words(latents), [11])
    assert pcm.shape == (2, 11 * HOP)
    assert pcm.std() > 0.05
    assert (pcm - expected).abs().max() < 1e-4


def test_latent_codec_decode_is_chunk_invariant(codec: VibeVoiceCodec, latents: np.ndarray) -> None:
    """Norms are computed in float64."""
    exact, codes = codec.double(), words(latents)
    try:
        whole = decode_words(exact, codes, [11])
        for sizes in ([1] * 11, [2] * 5 + [1], [1, 3, 7]):
            assert (decode_words(exact, codes, sizes) - whole).abs().max() < 1e-12
        assert (decode_words(exact, codes[1:], [3, 8])[0] - whole[1]).abs().max() < 1e-12
    finally:
        codec.float()


def test_vibevoice_stretches_are_decoded_independently(codec: VibeVoiceCodec, latents: np.ndarray) -> None:
    """This also holds if utterances in a batch begin stretches in different frames of a window."""
    codes = torch.cat([words(latents[:1], (0, 4, 9)), words(latents[1:], (0, 6))])
    found = decode_words(codec, codes, [11])
    for utterance, borders in ((0, (0, 4, 9, 11)), (1, (0, 6, 11))):
        parts = [
            decode_words(codec, words(latents[utterance : utterance + 1, start:stop]), [stop - start])[0]
            for start, stop in itertools.pairwise(borders)
        ]
        torch.testing.assert_close(found[utterance], torch.cat(parts), rtol=0, atol=5e-4)
    torch.testing.assert_close(decode_words(codec, codes, [3, 4, 4]), found, rtol=0, atol=5e-4)


def test_encoded_voices_match_the_authors(codec: VibeVoiceCodec, model: VibeVoiceAcousticTokenizerModel) -> None:
    """The noise that is added to them depends only on the recording."""
    pcm = (0.03 * np.random.default_rng(0).standard_normal(5 * HOP - 7)).astype(np.float32)
    extractor = VibeVoiceAcousticTokenizerFeatureExtractor()
    inputs = extractor(pcm, sampling_rate=24000, pad_to_multiple_of=HOP)["input_values"]
    with torch.no_grad():
        mean = model.encode(inputs, sample=False).latents[0].numpy()
    found = latents_of(codec.encode(pcm).T)
    assert found.shape == (5, NUM_NUMBERS + 1)
    assert not found[:, -1].any()
    noise = stored_noise(pcm, 1 + mean.size)
    expected = (mean + TOKENIZER["vae_std"] * noise[0] * noise[1:].reshape(mean.shape) + OFFSET) * SCALE
    np.testing.assert_allclose(found[:, :-1], expected, atol=1e-5)
    assert codec.encode(pcm.copy()).tolist() == codec.encode(pcm).tolist()
    assert (codec.encode(pcm * 0.5) != codec.encode(pcm)).any()
    many = stored_noise(pcm, 100_000)
    assert abs(many.mean()) < 0.02
    assert abs(many.std() - 1) < 0.02


def test_latent_codec_constants(codec: VibeVoiceCodec) -> None:
    spec, config = codec.spec, TokenizerConfig.from_record({})
    assert (spec.sample_rate, spec.samples_per_frame, spec.frame_rate, spec.num_codebooks) == (24000, HOP, 7.5, 9)
    assert spec.are_latents
    assert (config.hop, config.size, config.reach) == (HOP, 64, 58)


def test_reach_is_the_exact_left_context_in_frames(codec: VibeVoiceCodec) -> None:
    reach, frames = codec.config.reach, np.random.default_rng(2).standard_normal((1, 30, NUM_NUMBERS))
    assert reach < 29
    exact = codec.double()
    try:
        last = slice(-HOP, None)
        base = decode_words(exact, words(frames.astype(np.float32)), [30])[0, last]
        for back, matters in ((reach, True), (reach + 1, False)):
            moved = frames.astype(np.float32)
            moved[:, -1 - back] += 100
            assert bool((decode_words(exact, words(moved), [30])[0, last] != base).any()) == matters
    finally:
        codec.float()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 2}, "audio_config.channels: expected 1, got 2"),
        ({"hidden_act": "relu"}, "audio_config.hidden_act: expected 'gelu', got 'relu'"),
        ({"depths": [3]}, "downsampling_ratios >= 2 .*, and one more depth"),
        (
            {"downsampling_ratios": [1, 5, 8, 20]},
            "downsampling_ratios >= 2 .*, and one more depth",
        ),
        ({"downsampling_ratios": 5}, "downsampling_ratios and depths must be lists"),
        ({"num_filters": -1}, r"sizes and ratios must be integers in \[1, 65536\]"),
        ({"kernel_size": True}, r"sizes and ratios must be integers in \[1, 65536\]"),
        ({"depths": [3] * 4 + [65]}, r"and depths in \[1, 64\]"),
        ({"num_filters": 1 << 14}, "num_filters: expected at most 65536 channels at every rate, got 262144"),
        ({"rms_norm_eps": "small"}, "expected rms_norm_eps and vae_std of at least 0"),
        ({"vae_std": float("nan")}, "expected rms_norm_eps and vae_std of at least 0"),
    ],
)
def test_unsupported_codec_variants_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        TokenizerConfig.from_record(TOKENIZER | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mimi"}, "expected model_type vibevoice with audio_config"),
        ({"audio_config": 3}, "expected model_type vibevoice with audio_config"),
        ({"latent_scaling_factor": 0}, "latent_scaling_factor, latent_bias_factor: expected finite numbers"),
        ({"latent_bias_factor": "much"}, "latent_scaling_factor, latent_bias_factor: could not convert"),
    ],
)
def test_codec_of_another_model_type_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    record = {"model_type": "vibevoice", "audio_config": TOKENIZER, "latent_scaling_factor": 1, "latent_bias_factor": 0}
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "config.json").write_text(json.dumps(record | change))
    with pytest.raises(CheckpointError, match=message):
        load_codec("vibevoice", tmp_path)


def test_loud_recordings_are_scaled_without_clipping() -> None:
    """A recording with a loud peak is scaled down as a whole."""
    config = replace(TokenizerConfig.from_record(TOKENIZER), deviation=0.0)
    pcm = np.zeros(HOP, np.float32)
    pcm[10] = 0.5
    made = VibeVoiceCodec(config, LatentScale(1.0, 0.0)).eval()
    assert made.encode(pcm).shape == (NUM_NUMBERS + 1, 1)
    inputs = VibeVoiceAcousticTokenizerFeatureExtractor()(pcm, sampling_rate=24000)["input_values"]
    mean, _ = made.encoder.step(inputs, torch.zeros(1, made.encoder.num_kept))
    np.testing.assert_allclose(latents_of(made.encode(pcm))[:-1], mean[0].detach().numpy(), atol=1e-5)
