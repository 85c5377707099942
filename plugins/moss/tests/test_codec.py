"""MOSS-Audio-Tokenizer: codes and samples equal those of the authors' class."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from lab.releases.random_tensors import split_weights
from plugins.moss.lab.moss_tts_replies import STRIDE, recording, stored
from plugins.moss.lab.moss_tts_replies import random_codes as stored_codes
from plugins.moss.lab.random_moss import codec_config, codec_shapes, write_codec
from stretto.codecs.base import load_codec
from stretto.config import DecoderConfig
from stretto.errors import CheckpointError
from stretto.family.plugin import decoder_size
from stretto.testing.codec_streams import stream
from stretto.testing.codec_suite import CodecCase, CodecSuite, PublishedCodec
from stretto.testing.releases import edited
from stretto_moss.codec import MossCodec, MossConfig, plain_names

CODES = torch.from_numpy(stored_codes())


def published_codec() -> MossCodec:
    return MossCodec(MossConfig.from_record(codec_config("published")))


def published_shapes() -> Mapping[str, Sequence[int]]:
    """Return names and shapes by the authors' classes for their config.json."""
    shapes = codec_shapes(codec_config("published"))
    tensors = plain_names({name: torch.zeros(shape, device="meta") for name, shape in shapes.items()})
    return {name: tensor.shape for name, tensor in tensors.items()}


class TestMoss(CodecSuite):
    case = CodecCase(
        name="moss",
        write=write_codec,
        spec={"sample_rate": 24_000, "samples_per_frame": 1920, "max_batch": 8, "left_frames": 0, "right_frames": 0},
        pads_recordings=False,
        positions=(3, 30),
        name_if_missing=lambda name: name.split(".")[0],
        published=PublishedCodec(
            published_codec, decoder_size("moss").state_bytes // 4, 1_774_548_480, published_shapes
        ),
        refused_configs=(
            ({"model_type": "mimi"}, "model_type: expected speech_tokenizer"),
            ({"quantizer_kwargs.quantizer_type": "rvq"}, "and quantizer_type rlfq, got 1, True and 'rvq'"),
            ({"number_channels": 2}, "downsample_rate: expected the product of the patch sizes by 2 (number_channels)"),
            ({"number_channels": 1.0}, "number_channels 1 or 2"),
            ({"downsample_rate": 960}, "downsample_rate: expected the product"),
            ({"decoder_kwargs.0.gating": "silu"}, "decoder_kwargs: expected {'gating': 'none'}"),
            ({"encoder_kwargs.1.causal": False}, "encoder_kwargs: expected {'causal': True}"),
            ({"decoder_kwargs.2.input_dimension": 7}, "parts that fit together"),
            ({"decoder_kwargs": []}, "decoder_kwargs: expected Transformer and PatchedPretransform alternately"),
            ({"decoder_kwargs.0.num_layers": "many"}, "num_layers: expected an integer"),
            ({"causal_transformer_context_duration": 1e9}, "context: expected an integer"),
        ),
        refused_edits=(
            (
                "model.safetensors",
                lambda tensors: tensors.pop("quantizer.input_proj.parametrizations.weight.original1"),
                "expected the norms of",
            ),
        ),
    )

    def test_samples_match_the_authors(self, codec: MossCodec) -> None:
        """The utterances are longer than the attention windows."""
        pcm = stream(codec, CODES, [CODES.shape[2]])[:, ::STRIDE].numpy()
        expected = stored()["pcm"]
        assert 0.05 < np.abs(expected).mean() < np.abs(expected).max() < 1, "nothing is clipped"
        assert np.abs(pcm - expected).max() < 1e-4

    def test_codes_match_the_authors(self, codec: MossCodec) -> None:
        """An incomplete last frame is left out, as in the authors' class."""
        expected = stored()["codes"]
        assert expected.shape[1] == len(recording()) // codec.spec.samples_per_frame
        assert (codec.encode(recording()) == expected).mean() > 0.99  # two entries may be equally near
        assert codec.encode(recording()[:1919]).shape == (codec.spec.num_codebooks, 0)

    def test_sharded_codec_is_read(self, codec: MossCodec, copied: Path) -> None:
        split_weights(copied, 3)
        assert (load_codec("moss", copied).encode(recording()) == codec.encode(recording())).all()


class TestMossOfTwoChannels(CodecSuite):
    """A codec of two channels is a codec of one with twice the rate, whose samples belong to them in turn."""

    case = CodecCase(
        name="moss",
        write=partial(write_codec, num_channels=2),
        spec={"sample_rate": 48_000, "samples_per_frame": 3840},
        pads_recordings=False,
        positions=(3, 30),
        name_if_missing=lambda name: name.split(".")[0],
        refused_configs=(
            ({"number_channels": 3}, "number_channels 1 or 2"),
            ({"enable_channel_interleave": False}, "interleave true"),
        ),
    )

    def test_channels_alternate(self, codec: MossCodec, copied: Path) -> None:
        with edited(copied / "config.json") as record:
            record |= {"number_channels": 1, "sampling_rate": 96_000, "downsample_rate": 7680}
        single = load_codec("moss", copied)
        alternating = stream(single, CODES, [CODES.shape[2]])
        assert alternating.abs().max() < 1, "nothing is clipped"
        expected = alternating.unflatten(1, (-1, 2)).mean(2)
        assert (stream(codec, CODES, [CODES.shape[2]]) - expected).abs().max() < 1e-6
        pcm = np.resize(recording(), 3840 * 30 + 100)
        assert (codec.encode(pcm) == single.encode(np.repeat(pcm, 2))).all()
        assert codec.encode(pcm).shape == (codec.spec.num_codebooks, 30)


def test_batches_are_small_because_of_the_state() -> None:
    assert DecoderConfig(max_batch=64).limited(8).max_batch == 8
    assert DecoderConfig(max_batch=64).limited(None).max_batch == 64


def test_window_of_an_absurd_length_is_refused() -> None:
    """No weight depends on its length, so that nothing else would refuse it."""
    record = codec_config("published")
    with pytest.raises(CheckpointError, match="encoder_kwargs: expected windows whose keys"):
        MossConfig.from_record(record | {"causal_transformer_context_duration": 20})
