"""VibeVoice's tokenizers against transformers; stretches start afresh."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import VibeVoiceAcousticTokenizerConfig, VibeVoiceAcousticTokenizerModel
from transformers.models.vibevoice_acoustic_tokenizer.feature_extraction_vibevoice_acoustic_tokenizer import (
    VibeVoiceAcousticTokenizerFeatureExtractor,
)

from plugins.vibevoice.tests.vibevoice_release import HOP, NUM_NUMBERS, OFFSET, SCALE, TOKENIZER, tensor
from stretto.streams.layout import latents_of, words_of
from stretto.testing.codec_streams import stream
from stretto.testing.codec_suite import CodecCase, CodecSuite
from stretto_vibevoice.codec import LatentScale, TokenizerConfig, VibeVoiceCodec, published_name, stored_noise


def published() -> VibeVoiceAcousticTokenizerModel:
    model = VibeVoiceAcousticTokenizerModel(VibeVoiceAcousticTokenizerConfig(**TOKENIZER)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensor(name, parameter.shape))
    return model


def words(latents: np.ndarray, begins: tuple[int, ...] = (0,)) -> torch.Tensor:
    """Return scaled latents [B, T, D] as words [B, K, T], with stretches that begin at the given frames."""
    marks = np.zeros((*latents.shape[:2], 1), np.float32)
    marks[:, list(begins)] = 1
    return torch.from_numpy(words_of(np.concatenate([latents, marks], 2)).astype(np.int64)).transpose(1, 2)


@pytest.fixture(scope="module")
def model() -> VibeVoiceAcousticTokenizerModel:
    return published()


@pytest.fixture(scope="module")
def latents() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, 11, NUM_NUMBERS)).astype(np.float32)


def write(folder: Path) -> Path:
    made = VibeVoiceCodec(TokenizerConfig.from_record(TOKENIZER), LatentScale(SCALE, OFFSET))
    stored = published().state_dict()
    assert len(stored) == len(made.state_dict())
    tensors = {name: stored[published_name(name)].contiguous() for name in made.state_dict()}
    (folder / "codec").mkdir()
    save_file(tensors, folder / "codec" / "model.safetensors")
    record = {
        "model_type": "vibevoice",
        "audio_config": TOKENIZER,
        "latent_scaling_factor": SCALE,
        "latent_bias_factor": OFFSET,
    }
    (folder / "codec" / "config.json").write_text(json.dumps(record))
    return folder


def draw(codec: VibeVoiceCodec, batch: int, frames: int, seed: int) -> torch.Tensor:
    """Return words of one stretch."""
    return words(np.random.default_rng(seed).standard_normal((batch, frames, NUM_NUMBERS)).astype(np.float32))


SCALES = "latent_scaling_factor, latent_bias_factor"
SIZES = "sizes and ratios must be integers in [1, 65536]"


class TestVibeVoice(CodecSuite):
    case = CodecCase(
        name="vibevoice",
        write=write,
        spec={
            "sample_rate": 24_000,
            "samples_per_frame": HOP,
            "frame_rate": 7.5,
            "num_codebooks": NUM_NUMBERS + 1,
            "are_latents": True,
        },
        draw=draw,
        num_frames=20,
        positions=(2, 15),
        tolerance=1e-11,
        float32_tolerance=1e-4,
        weights="codec/model.safetensors",
        config="codec/config.json",
        refused_configs=(
            ({"audio_config.channels": 2}, "audio_config.channels: expected 1, got 2"),
            ({"audio_config.hidden_act": "relu"}, "audio_config.hidden_act: expected 'gelu', got 'relu'"),
            ({"audio_config.depths": [3]}, "and one more depth"),
            ({"audio_config.downsampling_ratios": [1, 5, 8, 20]}, "and one more depth"),
            ({"audio_config.downsampling_ratios": 5}, "downsampling_ratios and depths must be lists"),
            ({"audio_config.num_filters": -1}, SIZES),
            ({"audio_config.kernel_size": True}, SIZES),
            ({"audio_config.depths": [3] * 4 + [65]}, "and depths in [1, 64]"),
            ({"audio_config.num_filters": 1 << 14}, "expected at most 65536 channels at every rate, got 262144"),
            ({"audio_config.rms_norm_eps": "small"}, "expected rms_norm_eps and vae_std of at least 0"),
            ({"audio_config.vae_std": float("nan")}, "expected rms_norm_eps and vae_std of at least 0"),
            ({"model_type": "mimi"}, "expected model_type vibevoice with audio_config"),
            ({"audio_config": 3}, "expected model_type vibevoice with audio_config"),
            ({"latent_scaling_factor": 0}, f"{SCALES}: expected finite numbers"),
            ({"latent_bias_factor": "much"}, f"{SCALES}: could not convert"),
        ),
    )

    def test_samples_match_the_authors(
        self, codec: VibeVoiceCodec, model: VibeVoiceAcousticTokenizerModel, latents: np.ndarray
    ) -> None:
        """Their norms are computed in float32."""
        with torch.no_grad():
            scaled = torch.from_numpy(latents) / SCALE - OFFSET
            expected = model.decoder(scaled.transpose(1, 2)).audio[:, 0].clamp(-1, 1)
        pcm = stream(codec, words(latents), [11])
        assert pcm.shape == (2, 11 * HOP)
        assert pcm.std() > 0.05
        assert (pcm - expected).abs().max() < 1e-4

    def test_vibevoice_stretches_are_decoded_independently(self, codec: VibeVoiceCodec, latents: np.ndarray) -> None:
        """This also holds if utterances in a batch begin stretches in different frames of a window."""
        codes = torch.cat([words(latents[:1], (0, 4, 9)), words(latents[1:], (0, 6))])
        found = stream(codec, codes, [11])
        for utterance, borders in ((0, (0, 4, 9, 11)), (1, (0, 6, 11))):
            parts = [
                stream(codec, words(latents[utterance : utterance + 1, start:stop]), [stop - start])[0]
                for start, stop in itertools.pairwise(borders)
            ]
            torch.testing.assert_close(found[utterance], torch.cat(parts), rtol=0, atol=5e-4)
        torch.testing.assert_close(stream(codec, codes, [3, 4, 4]), found, rtol=0, atol=5e-4)

    def test_encoded_voices_match_the_authors(
        self, codec: VibeVoiceCodec, model: VibeVoiceAcousticTokenizerModel
    ) -> None:
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

    def test_reach_is_the_exact_left_context_in_frames(self, codec: VibeVoiceCodec) -> None:
        reach = codec.config.reach
        frames = np.random.default_rng(2).standard_normal((1, 30, NUM_NUMBERS))
        assert reach < 29
        exact = codec.double()
        try:
            last = slice(-HOP, None)
            base = stream(exact, words(frames.astype(np.float32)), [30])[0, last]
            for back, matters in ((reach, True), (reach + 1, False)):
                moved = frames.astype(np.float32)
                moved[:, -1 - back] += 100
                assert bool((stream(exact, words(moved), [30])[0, last] != base).any()) == matters
        finally:
            codec.float()


def test_missing_settings_have_the_published_defaults() -> None:
    config = TokenizerConfig.from_record({})
    assert (config.hop, config.size, config.reach) == (HOP, 64, 58)


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
