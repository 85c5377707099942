"""MOSS-Audio-Tokenizer: codes and samples equal those of the authors' class, in chunks of any size."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lab.releases.random_tensors import split_weights
from plugins.moss.lab.moss_tts_replies import STRIDE, random_codes, recording, stored
from plugins.moss.lab.random_moss import codec_config, codec_shapes, codec_tensors, write_codec
from stretto.codecs import memory
from stretto.codecs.base import load_codec
from stretto.config import DecoderConfig
from stretto.errors import CheckpointError
from stretto.family.plugin import decoder_size
from stretto_moss.codec import MossCodec, MossConfig, plain_names
from tests.codecs.streaming import check_chunks, check_places, stream
from tests.codecs.streaming import random_codes as codes_of

CODES = torch.from_numpy(random_codes())


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> MossCodec:
    found = load_codec("moss", write_codec(tmp_path_factory.mktemp("moss")))
    assert isinstance(found, MossCodec)
    return found


def test_samples_match_the_authors(codec: MossCodec) -> None:
    """The utterances are longer than the attention windows."""
    pcm = stream(codec, CODES, [CODES.shape[2]])[:, ::STRIDE].numpy()
    expected = stored()["pcm"]
    assert 0.05 < np.abs(expected).mean() < np.abs(expected).max() < 1, "nothing is clipped"
    assert np.abs(pcm - expected).max() < 1e-4


def test_moss_decode_is_chunk_invariant(codec: MossCodec) -> None:
    """Also for utterances at different frames in one batch."""
    exact = codec.double()
    try:
        whole = stream(exact, CODES, [CODES.shape[2]])
        check_chunks(exact, CODES, whole, 1e-12, 1, 2, 7, 25)
        check_places(exact, CODES, whole, 1e-12, (3, 30))
    finally:
        codec.float()


def test_codes_match_the_authors(codec: MossCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """An incomplete last frame is left out, as in the authors' class."""
    expected = stored()["codes"]
    assert expected.shape[1] == len(recording()) // codec.spec.samples_per_frame
    for frames in (memory.ENCODED_FRAMES, 3):
        monkeypatch.setattr(memory, "ENCODED_FRAMES", frames)
        assert (codec.encode(recording()) == expected).mean() > 0.99  # two entries may be equally near
    assert codec.encode(recording()[:1919]).shape == (codec.spec.num_codebooks, 0)


def test_sharded_codec_has_fewer_codebooks_on_request(codec: MossCodec, tmp_path: Path) -> None:
    split_weights(write_codec(tmp_path), 3)
    fewer = load_codec("moss", tmp_path, num_codebooks=2)
    assert (fewer.encode(recording()) == codec.encode(recording())[:2]).all()
    codes = codes_of(fewer, 1, 6)
    check_chunks(fewer, codes, stream(fewer, codes, [6]), 1e-4, 2)


def test_batches_are_small_because_of_the_state(codec: MossCodec) -> None:
    assert DecoderConfig(max_batch=64).limited(codec.spec.max_batch).max_batch == 8
    assert DecoderConfig(max_batch=64).limited(None).max_batch == 64


def test_published_sizes_fit_the_codec() -> None:
    """Names and shapes by the authors' classes for their config.json; the state of an utterance has 170 MB."""
    record = codec_config("published")
    with torch.device("meta"):
        codec = MossCodec(MossConfig.from_record(record))
        tensors = plain_names({name: torch.zeros(shape) for name, shape in codec_shapes(record).items()})
    assert {name: each.shape for name, each in codec.state_dict().items()} == {
        name: each.shape for name, each in tensors.items()
    }
    assert sum(each.numel() for each in codec.parameters()) == 1_774_548_480
    assert codec.initial_state(1).shape[1] * 4 == decoder_size("moss").state_bytes


def changed(path: str, value: object) -> dict[str, Any]:
    """Return a codec's config.json with another value at `path`."""
    record: Any = codec_config()
    *parents, last = path.split(".")
    place = record
    for name in parents:
        place = place[int(name) if name.isdecimal() else name]
    place[last] = value
    return record


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model_type", "mimi", "model_type: expected speech_tokenizer"),
        ("quantizer_kwargs.quantizer_type", "rvq", "and quantizer_type rlfq, got 1, True and 'rvq'"),
        ("number_channels", 2, "downsample_rate: expected the product of the patch sizes by 2 (number_channels)"),
        ("number_channels", 1.0, "number_channels 1 or 2"),
        ("downsample_rate", 960, "downsample_rate: expected the product"),
        ("decoder_kwargs.0.gating", "silu", "decoder_kwargs: expected {'gating': 'none'}"),
        ("encoder_kwargs.1.causal", False, "encoder_kwargs: expected {'causal': True}"),
        ("decoder_kwargs.2.input_dimension", 7, "parts that fit together"),
        ("decoder_kwargs", [], "decoder_kwargs: expected Transformer and PatchedPretransform alternately"),
        ("decoder_kwargs.0.num_layers", "many", "num_layers: expected an integer"),
        ("causal_transformer_context_duration", 1e9, "context: expected an integer"),
    ],
)
def test_configs_of_other_codecs_are_refused(tmp_path: Path, path: str, value: object, message: str) -> None:
    write_codec(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(changed(path, value)))
    with pytest.raises(CheckpointError, match="MOSS-Audio-Tokenizer") as caught:
        load_codec("moss", tmp_path)
    assert message in str(caught.value)


def test_window_of_an_absurd_length_is_refused() -> None:
    """No weight depends on its length, so that nothing else would refuse it."""
    record = codec_config("published")
    with pytest.raises(CheckpointError, match="encoder_kwargs: expected windows whose keys"):
        MossConfig.from_record(record | {"causal_transformer_context_duration": 20})


def test_weight_norm_without_its_direction_is_refused() -> None:
    tensors = {name: torch.from_numpy(each) for name, each in codec_tensors().items()}
    del tensors["quantizer.input_proj.parametrizations.weight.original1"]
    with pytest.raises(CheckpointError, match="expected the norms of"):
        plain_names(tensors)


def test_two_channels_alternate(tmp_path: Path) -> None:
    """A codec of two channels is a codec of one with twice the rate, whose samples belong to them in turn."""
    folder = write_codec(tmp_path / "two", num_channels=2)
    record = json.loads((folder / "config.json").read_text())
    one = tmp_path / "one"
    one.mkdir()
    (one / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    record |= {"number_channels": 1, "sampling_rate": 96_000, "downsample_rate": 7680}
    (one / "config.json").write_text(json.dumps(record))
    two, single = load_codec("moss", folder), load_codec("moss", one)
    assert (two.spec.sample_rate, two.spec.samples_per_frame) == (48_000, 3840)
    alternating = stream(single, CODES, [CODES.shape[2]])
    assert alternating.abs().max() < 1, "nothing is clipped"
    expected = alternating.unflatten(1, (-1, 2)).mean(2)
    assert (stream(two, CODES, [CODES.shape[2]]) - expected).abs().max() < 1e-6
    pcm = np.resize(recording(), 3840 * 30 + 100)
    assert (two.encode(pcm) == single.encode(np.repeat(pcm, 2))).all()
    assert two.encode(pcm).shape == (two.spec.num_codebooks, 30)


def test_two_channels_are_chunk_invariant(tmp_path: Path) -> None:
    two: Any = load_codec("moss", write_codec(tmp_path, num_channels=2)).double()
    whole = stream(two, CODES, [CODES.shape[2]])
    check_chunks(two, CODES, whole, 1e-12, 1, 7)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("number_channels", 3, "number_channels 1 or 2"), ("enable_channel_interleave", False, "interleave true")],
)
def test_other_channels_are_refused(tmp_path: Path, name: str, value: object, message: str) -> None:
    folder = write_codec(tmp_path, num_channels=2)
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | {name: value}))
    with pytest.raises(CheckpointError, match=message):
        load_codec("moss", folder)
