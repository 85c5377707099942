"""Fish Audio S2's codec: codes and samples equal those of a slow reference, in chunks of any size."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugins.fish_s2.lab.codecs import convert_codec
from plugins.fish_s2.lab.random_fish_s2_codec import KINDS, PUBLISHED, SMALL, tensors
from plugins.fish_s2.tests.codec_reference import Reference
from stretto.codecs import memory
from stretto.codecs.base import load_codec
from stretto.errors import CheckpointError
from stretto_fish_s2.codec import FishS2Codec, FishS2Config
from tests.codecs.streaming import check_chunks, check_places, largest, random_codes, stream
from tests.tiers import by_night

pytestmark = pytest.mark.usefixtures("one_thread")
NUM_FRAMES = 140  # more than the attention windows


@pytest.fixture(scope="module", params=["small", *by_night("other")])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def codec(kind: str, tmp_path_factory: pytest.TempPathFactory) -> FishS2Codec:
    """Return a codec in float64."""
    found = load_codec("fish_s2", convert_codec(tmp_path_factory.mktemp(kind), kind))
    assert isinstance(found, FishS2Codec)
    return found.double()


def noise(num_samples: int) -> np.ndarray:
    return (0.2 * np.random.default_rng(0).standard_normal(num_samples)).astype(np.float32)


def test_samples_match_the_reference(codec: FishS2Codec, kind: str) -> None:
    """Many residual codes exceed the last one, as those of the language model may."""
    codes = random_codes(codec, 1, NUM_FRAMES)
    assert codes[:, 1:].max() >= KINDS[kind]["codebook_size"]
    expected = Reference(KINDS[kind], tensors(kind)).decode(codes[0])
    assert expected.abs().mean() > 0.05
    assert expected.abs().max() < 0.999, "tanh limits nothing"
    assert largest(stream(codec, codes, [NUM_FRAMES])[0] - expected) < 1e-8


def test_codes_match_the_reference(codec: FishS2Codec, kind: str) -> None:
    """The last frame is padded with zeros."""
    hop = codec.spec.samples_per_frame
    pcm = noise(NUM_FRAMES * hop - hop // 2)
    codes = codec.encode(pcm)
    assert codes.dtype == np.int64
    expected = Reference(KINDS[kind], tensors(kind)).encode(torch.from_numpy(np.pad(pcm, (0, hop // 2))))
    assert (codes == expected.numpy()).all()
    assert min(len(set(each)) for each in codes.tolist()) > 3, "codebooks are used"


def test_encoding_in_parts_equals_one_pass(codec: FishS2Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    pcm = noise(31 * codec.spec.samples_per_frame + 1)
    whole = codec.encode(pcm)
    assert whole.shape == (codec.spec.num_codebooks, 32)
    for frames in (1, 7, 40):
        monkeypatch.setattr(memory, "ENCODED_FRAMES", frames)
        assert (codec.encode(pcm) == whole).all()
    assert codec.encode(pcm[:0]).shape == (codec.spec.num_codebooks, 0)


def test_fish_s2_decode_is_chunk_invariant(codec: FishS2Codec) -> None:
    """Also for utterances at different frames in one batch, before and after the attention window is full."""
    codes = random_codes(codec, 3, NUM_FRAMES)
    whole = stream(codec, codes, [NUM_FRAMES])
    check_chunks(codec, codes, whole, 1e-11, 5, 25, 60)
    check_chunks(codec, codes[:1, :, :12], whole[:1, : 12 * codec.spec.samples_per_frame], 1e-11, 1, 2)
    check_places(codec, codes, whole, 1e-11, (0, 5, 135))


def test_fish_s2_float32_chunks_join(tmp_path: Path) -> None:
    codec = load_codec("fish_s2", convert_codec(tmp_path, "other"))
    codes = random_codes(codec, 2, NUM_FRAMES)
    check_chunks(codec, codes, stream(codec, codes, [NUM_FRAMES]), 2e-5, 7, 25)


def test_fewer_fish_s2_codebooks_use_the_first_ones(tmp_path: Path) -> None:
    checkpoint = convert_codec(tmp_path)
    full, pcm = load_codec("fish_s2", checkpoint), noise(5 * 2048)
    for number in (1, 3):
        fewer = load_codec("fish_s2", checkpoint, num_codebooks=number)
        codes = fewer.encode(pcm)
        assert (codes == full.encode(pcm)[:number]).all()
        assert stream(fewer, torch.from_numpy(codes)[None], [5]).shape == (1, 5 * 2048)


def test_published_codec_sizes() -> None:
    """The state is mainly the keys and values of eight layers; the rest are the inputs of convolutions."""
    with torch.device("meta"):
        codec = FishS2Codec(FishS2Config.from_record(PUBLISHED))
    spec = codec.spec
    assert (spec.sample_rate, spec.samples_per_frame, spec.num_codebooks, spec.codebook_size) == (
        44_100,
        2048,
        10,
        4096,
    )
    assert (spec.left_frames, spec.right_frames, spec.tail_samples) == (0, 0, 0)
    assert codec.initial_state(1).shape == (
        1,
        8 * 2 * 127 * 1024 + 3 * 6 * 1024 + 1536 + 79 * (768 + 384 + 192) + 78 * 96 + 6 * 96,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "dac"}, "model_type: expected 'fish_s2', got 'dac'"),
        ({"n_layer": None}, "n_layer: expected an integer in [1, 65536], got None"),
        ({"encoder_dim": 1 << 40}, "encoder_dim: expected an integer in [1, 65536], got 1099511627776"),
        ({"codebook_size": True}, "codebook_size: expected an integer in [1, 65536], got True"),
        ({"window_size": 5000}, "window_size: expected an integer in [1, 4096], got 5000"),
        ({"decoder_rates": []}, "decoder_rates: expected 1 to 8 integers in [1, 65536], got []"),
        ({"decoder_rates": "8842"}, "decoder_rates: expected 1 to 8 integers in [1, 65536], got '8842'"),
        ({"decoder_rates": [8, 8]}, "decoder_rates: expected rates with the product of encoder_rates, [2, 4, 8, 8]"),
        ({"decoder_dim": 24}, "decoder_dim: expected a multiple of 16 channels, got 24"),
        ({"encoder_dim": 5}, "encoder_dim: expected a multiple of 64 channels, got 80"),
        ({"n_layer": 3}, "missing: encoder.pre_transformer.layers.2."),
        ({"codebook_dim": 9}, "wrong shape: residual.quantizers.0.codebook.weight"),
    ],
    ids=str,
)
def test_invalid_fish_s2_configs_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = convert_codec(tmp_path) / "codec"
    record = json.loads((folder / "config.json").read_text())
    assert record == {"model_type": "fish_s2", **SMALL}
    (folder / "config.json").write_text(json.dumps(record | change))
    with pytest.raises(CheckpointError) as refused:
        load_codec("fish_s2", folder)
    assert message in str(refused.value)
    assert str(folder) in str(refused.value)
