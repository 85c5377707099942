"""The Pocket TTS codec: samples equal the authors', in chunks of any size, batched and unbatched."""

from pathlib import Path

import numpy as np
import pytest

from plugins.pocket.lab.random_pocket import recording
from plugins.pocket.tests.pocket_release import convert_release, reply
from stretto.codecs import memory, streaming
from stretto.codecs.base import load_codec
from stretto.errors import CheckpointError, InvalidRequest
from stretto.streams.layout import latents_of
from stretto_pocket.codec import PocketCodec
from stretto_pocket.pocket_tts.prompt import ended_on_pause
from tests.codecs.streaming import decode_latents

FRAME = 1920


@pytest.fixture(scope="module", params=["english", "english_2m"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def codec(kind: str, tmp_path_factory: pytest.TempPathFactory) -> PocketCodec:
    codec = load_codec("pocket", convert_release(tmp_path_factory.mktemp(kind), kind))
    assert isinstance(codec, PocketCodec)
    return codec


@pytest.mark.parametrize("min_product", [0, streaming.MIN_PRODUCT], ids=["oneDNN", "large products by oneDNN"])
def test_samples_match_the_authors(
    codec: PocketCodec, kind: str, min_product: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "MIN_PRODUCT", min_product)
    expected = reply(kind)
    pcm = decode_latents(codec, expected.latents[None], [len(expected.latents)])[0].numpy()
    assert len(pcm) == len(expected.latents) * FRAME
    assert np.abs(pcm[: len(expected.pcm)] - expected.pcm).max() < 1e-5
    assert np.abs(pcm[-len(expected.pcm_last) :] - expected.pcm_last).max() < 1e-5
    assert expected.pcm.std() > 0.02
    assert np.abs(expected.pcm).max() < 1, "nothing is clipped"


def test_latent_codec_decode_is_chunk_invariant(codec: PocketCodec) -> None:
    latents = np.random.default_rng(1).standard_normal((2, 12, codec.spec.num_codebooks)).astype(np.float32)
    exact = codec.double()
    try:
        whole = decode_latents(exact, latents, [12])
        for sizes in ([1] * 12, [2] * 6, [5, 5, 2], [1, 3, 7, 1], [4, 8]):
            assert (decode_latents(exact, latents, sizes) - whole).abs().max() < 1e-12
        for index in range(2):
            assert (decode_latents(exact, latents[index : index + 1], [3, 9])[0] - whole[index]).abs().max() < 1e-12
    finally:
        codec.float()


def test_pocket_codec_utterance_starts_with_a_fade_in(codec: PocketCodec) -> None:
    latents = np.random.default_rng(2).standard_normal((1, 2, codec.spec.num_codebooks)).astype(np.float32)
    assert decode_latents(codec, latents, [2])[0, 0] == 0


def test_encoded_latents_match_the_authors(codec: PocketCodec, kind: str) -> None:
    found, expected = latents_of(codec.encode(ended_on_pause(recording(), 24_000))).T, reply(kind).voice
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 2e-5
    assert expected.std() > 0.1


def test_encoding_in_parts_equals_one_pass(codec: PocketCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    pcm = 0.1 * np.random.default_rng(3).standard_normal(5 * FRAME + 1).astype(np.float32)
    exact = codec.double()
    try:
        whole = exact.encode(pcm)
        assert whole.shape == (codec.spec.num_codebooks, 6)
        for frames in (1, 4):
            monkeypatch.setattr(memory, "ENCODED_FRAMES", frames)
            assert np.abs(latents_of(exact.encode(pcm)) - latents_of(whole)).max() < 1e-6  # float32 in the end
    finally:
        codec.float()


def test_codec_without_encoder_refuses_voice_cloning(tmp_path: Path) -> None:
    codec = load_codec("pocket", convert_release(tmp_path, "english", clones=False))
    with pytest.raises(InvalidRequest, match=r"audio: expected no audio \(this checkpoint cannot clone voices\)"):
        codec.encode(np.zeros(24000, np.float32))


def test_codec_of_another_model_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "config.json").write_text('{"model_type": "mimi"}')
    with pytest.raises(CheckpointError, match="expected model_type pocket"):
        load_codec("pocket", tmp_path)
