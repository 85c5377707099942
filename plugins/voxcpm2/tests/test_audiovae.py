"""VoxCPM2's codec: samples and latents equal the authors', in chunks of any size, batched and unbatched."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.voxcpm2.lab.random_voxcpm2 import VAE, recording
from plugins.voxcpm2.tests.voxcpm2_release import KINDS, LATENT_TOLERANCE, MODES, convert_release, reply, stored
from stretto.codecs.base import load_codec
from stretto.errors import CheckpointError
from stretto.streams.layout import latents_of
from stretto_voxcpm2.audiovae import AudioVae, AudioVaeConfig
from tests.codecs.streaming import decode_latents

FRAME, NUM_CONTEXT = 7680, 3
# The stored latents, of up to 25, are rounded to float32, which moves samples by 2e-4 even if the rest is exact.
SAMPLE_TOLERANCE = 1e-2


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> AudioVae:
    codec = load_codec("audiovae", convert_release(tmp_path_factory.mktemp("voxcpm2")), num_codebooks=32)
    assert isinstance(codec, AudioVae)
    return codec


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_samples_match_the_authors(codec: AudioVae, kind: str, mode: str) -> None:
    """A reply that continues a recording begins with the decoder's state after the recording's last patches."""
    expected = reply(kind, mode)
    context = expected.latents_before[-NUM_CONTEXT if expected.is_audio[-1] else len(expected.text) :]
    patches = np.concatenate([context, expected.latents])
    pcm = decode_latents(codec, patches[None], [len(patches)])[0].numpy()[len(context) * FRAME :]
    assert len(pcm) == expected.num_samples == len(expected.latents) * FRAME
    np.testing.assert_allclose(pcm[: len(expected.pcm)], expected.pcm, atol=SAMPLE_TOLERANCE, rtol=0)
    np.testing.assert_allclose(pcm[-len(expected.pcm_last) :], expected.pcm_last, atol=SAMPLE_TOLERANCE, rtol=0)
    assert expected.pcm.std() > 0.1


def test_encoded_latents_match_the_authors(codec: AudioVae) -> None:
    pcm, unit = recording("reference"), 2560
    found = latents_of(codec.encode(pcm).T)
    np.testing.assert_allclose(found, stored()["plain.reference"], atol=LATENT_TOLERANCE)
    assert len(found) == 1 + len(pcm) // unit
    padded = np.pad(pcm, (0, -len(pcm) % unit))
    np.testing.assert_array_equal(latents_of(codec.encode(padded).T), found)
    other = recording("prompt")
    found = latents_of(codec.encode(np.pad(other, (-len(other) % unit, 0))).T)
    np.testing.assert_allclose(found, stored()["plain.prompt"], atol=LATENT_TOLERANCE)


def test_latent_codec_decode_is_chunk_invariant(codec: AudioVae) -> None:
    patches = np.random.default_rng(1).standard_normal((2, 10, 32)).astype(np.float32)
    exact = codec.double()
    try:
        whole = decode_latents(exact, patches, [10])
        assert whole.abs().max() < 1
        for sizes in ([1] * 10, [2] * 5, [5, 5], [1, 3, 6], [9, 1]):
            assert (decode_latents(exact, patches, sizes) - whole).abs().max() < 1e-11
        for index in range(2):
            assert (decode_latents(exact, patches[index : index + 1], [3, 7])[0] - whole[index]).abs().max() < 1e-11
    finally:
        codec.float()


def test_latent_codec_constants(codec: AudioVae) -> None:
    spec = codec.spec
    assert (spec.sample_rate, spec.input_rate, spec.samples_per_frame, spec.frame_rate) == (48000, 16000, FRAME, 6.25)
    assert spec.are_latents


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_noise_block": True}, r"expected \{'use_noise_block': False\}, got \{'use_noise_block': True\}"),
        ({"depthwise": False}, r"expected \{'depthwise': True\}"),
        ({"cond_type": "add"}, r"expected \{'cond_type': 'scale_bias'\}"),
        ({"sr_bin_boundaries": None}, "cannot be read as an AudioVAE"),
        ({"decoder_rates": [8, 6]}, "the same number of latents per second"),
        ({"decoder_dim": 100}, "multiples of 64, got 100"),
        ({"encoder_rates": "2588"}, "cannot be read as an AudioVAE"),
    ],
)
def test_unsupported_codec_variants_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"audio_vae_config: .*{message}"):
        AudioVaeConfig.from_record(VAE | change, 4)


def test_missing_settings_have_the_published_defaults() -> None:
    config = AudioVaeConfig.from_record({}, 4)
    assert (config.num_words, config.encoder_channels, config.decoder_channels) == (256, 128, 2048)
    assert config.samples_per_patch == FRAME


def test_codec_of_another_model_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "codec").mkdir()
    for record in ({"model_type": "mimi"}, {"model_type": "audiovae", "audio_vae_config": VAE}):
        (tmp_path / "codec" / "config.json").write_text(json.dumps(record))
        with pytest.raises(CheckpointError, match="expected model_type audiovae with audio_vae_config and patch_size"):
            load_codec("audiovae", tmp_path)
