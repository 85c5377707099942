"""The Pocket TTS codec against stored results of the authors."""

from functools import partial
from pathlib import Path
from typing import ClassVar
from unittest.mock import Mock

import numpy as np
import pytest

from plugins.pocket.lab.random_pocket import recording
from plugins.pocket.tests.pocket_release import cloning, convert_release, reply
from stretto.codecs import streaming
from stretto.codecs.base import load_codec
from stretto.errors import InvalidRequest
from stretto.preprocessing.request import Preprocessor
from stretto.streams.layout import latents_of
from stretto.testing.codec_streams import decode_latents
from stretto.testing.codec_suite import CodecCase, CodecSuite
from stretto_pocket.codec import PocketCodec
from stretto_pocket.pocket_tts.prompt import ended_on_pause

FRAME = 1920


class PocketSuite(CodecSuite):
    kind: ClassVar[str]

    @pytest.mark.parametrize("min_product", [0, streaming.MIN_PRODUCT], ids=["oneDNN", "large products by oneDNN"])
    def test_samples_match_the_authors(
        self, codec: PocketCodec, min_product: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(streaming, "MIN_PRODUCT", min_product)
        expected = reply(self.kind)
        pcm = decode_latents(codec, expected.latents[None])[0].numpy()
        assert len(pcm) == len(expected.latents) * FRAME
        assert np.abs(pcm[: len(expected.pcm)] - expected.pcm).max() < 1e-5
        assert np.abs(pcm[-len(expected.pcm_last) :] - expected.pcm_last).max() < 1e-5
        assert expected.pcm.std() > 0.02
        assert np.abs(expected.pcm).max() < 1, "nothing is clipped"

    def test_pocket_codec_utterance_starts_with_a_fade_in(self, codec: PocketCodec) -> None:
        latents = np.random.default_rng(2).standard_normal((1, 2, codec.spec.num_codebooks)).astype(np.float32)
        assert decode_latents(codec, latents)[0, 0] == 0

    def test_encoded_latents_match_the_authors(self, codec: PocketCodec) -> None:
        found = latents_of(codec.encode(ended_on_pause(recording(), 24_000))).T
        expected = reply(self.kind).voice
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 2e-5
        assert expected.std() > 0.1


def case_of(name: str, kind: str) -> CodecCase:
    return CodecCase(
        name=name,
        write=partial(convert_release, kind=kind),
        spec={
            "sample_rate": 24_000,
            "samples_per_frame": FRAME,
            "are_latents": True,
            "left_frames": 0,
            "right_frames": 0,
        },
        weights="codec/model.safetensors",
        config="codec/config.json",
        refused_configs=(({"model_type": "mimi"}, "expected model_type pocket"),),
    )


class TestPocket(PocketSuite):
    kind = "english"
    case = case_of("pocket", "english")


class TestPocketOf2M(PocketSuite):
    kind = "english_2m"
    case = case_of("pocket", "english_2m")


def test_codec_without_encoder_refuses_voice_cloning(tmp_path: Path) -> None:
    codec = load_codec("pocket", convert_release(tmp_path, "english", clones=False))
    with pytest.raises(InvalidRequest, match=r"audio: expected no audio \(this checkpoint cannot clone voices\)"):
        codec.encode(np.zeros(24000, np.float32))


def test_cloned_voice_is_restored_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are equal and the encoder is not called again; without a folder, nothing is stored."""
    checkpoint = convert_release(tmp_path / "release", "english")
    encodings = tmp_path / "encodings"
    first = Preprocessor(checkpoint, encodings=encodings)
    expected = [first.prepare(cloning("Hello.")).rows for _ in range(2)][1]
    assert len(list(encodings.rglob("*.*"))) == 1
    monkeypatch.setattr(PocketCodec, "encode", Mock(side_effect=AssertionError("encoded again")))
    again = Preprocessor(checkpoint, encodings=encodings)
    np.testing.assert_array_equal(again.prepare(cloning("Hello.")).rows, expected)
    assert Preprocessor(checkpoint).template._encoder._files is None
