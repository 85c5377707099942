from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EncodecConfig, EncodecModel

from stretto.codecs.base import Window, load_codec
from stretto.codecs.encodec import EncodecCodec
from stretto.errors import CheckpointError
from tests.codecs.streaming import (
    check_chunks,
    check_codes,
    check_fewer_codebooks,
    check_places,
    chunks_of,
    heard,
    largest,
    random_codes,
    stream,
)
from tests.tiers import by_night

pytestmark = pytest.mark.slow

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
TOTALS = (1, 2, 4, 9, 31)
SMALL = {"num_filters": 2, "hidden_size": 8, "codebook_size": 32}
# The strides, kernels and paddings of the published models; 4 codebooks of 5 bits.
KHZ_24 = {"target_bandwidths": [0.75, 1.5], "sampling_rate": 24000, **SMALL}
KHZ_32 = {
    "target_bandwidths": [1.0],
    "sampling_rate": 32000,
    "upsampling_ratios": [8, 5, 4, 4],
    "use_causal_conv": False,
    "use_conv_shortcut": False,
    **SMALL,
}


def make_model(values: dict, seed: int = 0) -> EncodecModel:
    """Return a model with random weights that is loud enough for errors to show."""
    torch.manual_seed(seed)
    model = EncodecModel(EncodecConfig(**values)).eval()
    for name, parameter in model.named_parameters():
        if "lstm.weight" in name:
            parameter.data.normal_(0, 1.5 / parameter.shape[1] ** 0.5)
        elif name.endswith("bias"):
            parameter.data.normal_(0, 0.1)
    for codebook, layer in enumerate(model.quantizer.layers):
        layer.codebook.embed.normal_(0, 1 / (codebook + 1))
    with torch.no_grad():
        codes = torch.randint(32, (1, 1, len(model.quantizer.layers), 50))
        last = model.decoder.layers[-1].conv
        last.bias.zero_()
        last.parametrizations.weight.original0 *= 0.3 / model.decode(codes, [None]).audio_values.abs().mean()
    return model


@pytest.fixture(scope="module", params=[pytest.param(KHZ_24, id="24kHz"), *by_night(KHZ_32, ids=["32kHz"])])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encodec")
    make_model(request.param).save_pretrained(path)
    return path


@pytest.fixture
def codec(directory: Path, dtype: torch.dtype) -> EncodecCodec:
    codec = load_codec("encodec", directory)
    assert isinstance(codec, EncodecCodec)
    return codec.to(dtype)


@torch.inference_mode()
def one_shot(model: EncodecModel, codes: torch.Tensor) -> torch.Tensor:
    """Decode complete utterances with transformers; check that samples are within [-1, 1]."""
    return model.decode(codes[None], [None]).audio_values[:, 0].clamp(-1, 1)


def test_codec_spec_is_read_from_the_checkpoint(directory: Path) -> None:
    spec = load_codec("encodec", directory).spec
    contexts = (spec.left_frames, spec.right_frames, spec.start_frames)
    expected = {24000: (320, 75.0, (8, 0, 7)), 32000: (640, 50.0, (4, 4, 4))}[spec.sample_rate]
    assert (spec.samples_per_frame, spec.frame_rate, contexts) == expected
    assert (spec.num_codebooks, spec.codebook_size) == (4, 32)


def test_encodec_decode_matches_transformers(directory: Path) -> None:
    codec = load_codec("encodec", directory)
    published = EncodecModel.from_pretrained(directory).eval()
    for total in TOTALS:
        codes = random_codes(codec, 2, total)
        assert largest(stream(codec, codes, [total]) - one_shot(published, codes)) <= 1e-5


@pytest.mark.parametrize("total", TOTALS)
def test_streamed_decode_equals_one_shot_decode(codec: EncodecCodec, dtype: torch.dtype, total: int) -> None:
    codes = random_codes(codec, 2, total, seed=total)
    whole = one_shot(codec.model, codes)
    assert whole.shape == (2, total * codec.spec.samples_per_frame)
    assert total < 9 or whole.abs().mean() > 0.05
    check_chunks(codec, codes, whole, TOLERANCE[dtype])


def test_utterances_at_different_positions_decode_in_one_batch(codec: EncodecCodec, dtype: torch.dtype) -> None:
    codes = random_codes(codec, 2, 40)
    check_places(codec, codes, one_shot(codec.model, codes), TOLERANCE[dtype], (10, 25))


@pytest.mark.parametrize("dtype", [torch.float64], indirect=True)
def test_encodec_lookahead_matches_the_spec(codec: EncodecCodec) -> None:
    frames = heard(partial(one_shot, codec.model), random_codes(codec, 1, 40), 20, 32)
    assert frames.nonzero()[0].item() == 20 - codec.spec.right_frames
    assert frames[20:].all()


def test_encodec_reflect_padding_affects_only_the_first_frames() -> None:
    """The causal codec's first window waits for 7 frames, because frame 6 is mirrored into the padding of frame 0."""
    codec = EncodecCodec(make_model(KHZ_24)).double()
    codes = random_codes(codec, 1, 20)
    for frame, first_heard in ((6, 0), (7, 7), (8, 8)):
        assert heard(partial(one_shot, codec.model), codes, frame, 32).nonzero()[0].item() == first_heard


def test_state_size_and_chunk_seams_are_bounded_in_a_long_utterance(codec: EncodecCodec, dtype: torch.dtype) -> None:
    codes = random_codes(codec, 1, 300)
    right = codec.spec.right_frames
    window = Window(codes[:, :, : 20 + right], 0, right, torch.tensor([0]), codec.initial_state(1))
    assert codec.decode(window)[1].shape == codec.initial_state(1).shape == (1, 2 * 2 * 32)
    assert largest(stream(codec, codes, chunks_of(25, 300)) - one_shot(codec.model, codes)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("samples", [1, 319, 641, 5000, *by_night(2, 321, 639, 640, 48_017)])
def test_encoding_matches_transformers(directory: Path, samples: int) -> None:
    codec = load_codec("encodec", directory)
    published = EncodecModel.from_pretrained(directory).eval()
    pcm = torch.randn(1, 1, samples, generator=torch.Generator().manual_seed(1)) / 4
    with torch.inference_mode():
        expected = published.encode(pcm, bandwidth=published.config.target_bandwidths[-1])
    assert expected.audio_scales == [None]
    check_codes(codec, pcm[0, 0].numpy(), expected.audio_codes[0, 0])


def test_encodec_with_fewer_codebooks_uses_the_first_ones() -> None:
    codec, full = EncodecCodec(make_model(KHZ_24)), EncodecCodec(make_model(KHZ_24))
    check_fewer_codebooks(codec, full, partial(one_shot, codec.model))


def test_empty_pcm_encodes_to_zero_frames(codec: EncodecCodec) -> None:
    assert codec.encode(np.zeros(0, np.float32)).shape == (4, 0)


@pytest.mark.parametrize("values", [{"normalize": True}, {"chunk_length_s": 1.0}, {"audio_channels": 2}], ids=str)
def test_non_streamable_encodec_checkpoint_is_refused(tmp_path: Path, values: dict) -> None:
    EncodecModel(EncodecConfig(**(KHZ_24 | values))).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=next(iter(values))):
        load_codec("encodec", tmp_path)
