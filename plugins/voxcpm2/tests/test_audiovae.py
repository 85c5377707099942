"""VoxCPM2's codec against stored results of the authors."""

import numpy as np
import pytest

from plugins.voxcpm2.lab.random_voxcpm2 import recording
from plugins.voxcpm2.tests.voxcpm2_release import KINDS, LATENT_TOLERANCE, MODES, convert_release, reply, stored
from stretto.streams.layout import latents_of
from stretto.testing.codec_streams import decode_latents
from stretto.testing.codec_suite import CodecCase, CodecSuite
from stretto.testing.releases import REMOVED
from stretto_voxcpm2.audiovae import AudioVae, AudioVaeConfig

FRAME, NUM_CONTEXT = 7680, 3
# The stored latents, of up to 25, are rounded to float32, which moves samples by 2e-4 even if the rest is exact.
SAMPLE_TOLERANCE = 1e-2


class TestAudioVae(CodecSuite):
    case = CodecCase(
        name="audiovae",
        write=convert_release,
        spec={
            "sample_rate": 48_000,
            "input_rate": 16_000,
            "samples_per_frame": FRAME,
            "frame_rate": 6.25,
            "num_codebooks": 32,
            "are_latents": True,
        },
        pads_recordings=False,
        num_frames=10,
        positions=(1, 6),
        tolerance=1e-11,
        weights="codec/model.safetensors",
        config="codec/config.json",
        refused_configs=(
            ({"audio_vae_config.use_noise_block": True}, "expected {'use_noise_block': False}, got {'use_noise_block'"),
            ({"audio_vae_config.depthwise": False}, "expected {'depthwise': True}"),
            ({"audio_vae_config.cond_type": "add"}, "expected {'cond_type': 'scale_bias'}"),
            ({"audio_vae_config.sr_bin_boundaries": None}, "cannot be read as an AudioVAE"),
            ({"audio_vae_config.decoder_rates": [8, 6]}, "the same number of latents per second"),
            ({"audio_vae_config.decoder_dim": 100}, "multiples of 64, got 100"),
            ({"audio_vae_config.encoder_rates": "2588"}, "cannot be read as an AudioVAE"),
            ({"model_type": "mimi"}, "expected model_type audiovae with audio_vae_config and patch_size"),
            ({"patch_size": REMOVED}, "expected model_type audiovae with audio_vae_config and patch_size"),
        ),
    )

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("kind", KINDS)
    def test_samples_match_the_authors(self, codec: AudioVae, kind: str, mode: str) -> None:
        """A reply that continues a recording begins with the decoder's state after the recording's last patches."""
        expected = reply(kind, mode)
        context = expected.latents_before[-NUM_CONTEXT if expected.is_audio[-1] else len(expected.text) :]
        patches = np.concatenate([context, expected.latents])
        pcm = decode_latents(codec, patches[None])[0].numpy()[len(context) * FRAME :]
        assert len(pcm) == expected.num_samples == len(expected.latents) * FRAME
        np.testing.assert_allclose(pcm[: len(expected.pcm)], expected.pcm, atol=SAMPLE_TOLERANCE, rtol=0)
        np.testing.assert_allclose(pcm[-len(expected.pcm_last) :], expected.pcm_last, atol=SAMPLE_TOLERANCE, rtol=0)
        assert expected.pcm.std() > 0.1

    def test_encoded_latents_match_the_authors(self, codec: AudioVae) -> None:
        pcm = recording("reference")
        unit = 2560
        found = latents_of(codec.encode(pcm).T)
        np.testing.assert_allclose(found, stored()["plain.reference"], atol=LATENT_TOLERANCE)
        assert len(found) == 1 + len(pcm) // unit
        padded = np.pad(pcm, (0, -len(pcm) % unit))
        np.testing.assert_array_equal(latents_of(codec.encode(padded).T), found)
        other = recording("prompt")
        found = latents_of(codec.encode(np.pad(other, (-len(other) % unit, 0))).T)
        np.testing.assert_allclose(found, stored()["plain.prompt"], atol=LATENT_TOLERANCE)


def test_missing_settings_have_the_published_defaults() -> None:
    config = AudioVaeConfig.from_record({}, 4)
    assert (config.num_words, config.encoder_channels, config.decoder_channels) == (256, 128, 2048)
    assert config.samples_per_patch == FRAME
