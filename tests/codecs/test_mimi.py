from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import MimiConfig, MimiModel

from stretto.codecs.base import Window, load_codec
from stretto.codecs.mimi import MimiCodec
from stretto.errors import CheckpointError
from tests.codecs.streaming import (
    check_chunks,
    check_codes,
    check_fewer_codebooks,
    check_places,
    heard,
    largest,
    random_codes,
)
from tests.tiers import by_night

pytestmark = pytest.mark.slow

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
# The strides, kernels and paddings of kyutai/mimi; a window that the tests can outlast.
SMALL = {
    "hidden_size": 32,
    "num_filters": 2,
    "codebook_size": 32,
    "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16,
    "num_quantizers": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "upsample_groups": 32,
    "layer_scale_initial_scale": 0.5,
    "sliding_window": 20,
}
HOP = 1920
NUM_KEYS = 3 * 2 * 2 * 19 * 8  # numbers of the keys and values of three layers, of two heads each


def make_model(seed: int = 0, **values: object) -> MimiModel:
    """Return a model with random weights that is loud enough for errors to show."""
    torch.manual_seed(seed)
    model = MimiModel(MimiConfig(**(SMALL | values))).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
        elif name.endswith("bias"):
            parameter.normal_(0, 0.1)
    for module in model.modules():
        if type(module).__name__ == "MimiEuclideanCodebook":
            module.embed_sum.normal_()
    codes = torch.randint(32, (1, 4, 25))
    last = model.decoder.layers[-1].conv
    last.bias.zero_()
    last.weight *= 0.3 / model.decode(codes).audio_values.abs().mean()
    return model


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mimi")
    make_model().save_pretrained(path)
    return path


@pytest.fixture
def codec(directory: Path, dtype: torch.dtype) -> MimiCodec:
    codec = load_codec("mimi", directory)
    assert isinstance(codec, MimiCodec)
    return codec.to(dtype)


@torch.inference_mode()
def one_shot(model: MimiModel, codes: torch.Tensor) -> torch.Tensor:
    """Decode complete utterances with transformers; check that samples are within [-1, 1]."""
    return model.decode(codes).audio_values[:, 0].clamp(-1, 1)


def test_codec_spec_is_read_from_the_checkpoint(directory: Path) -> None:
    spec = load_codec("mimi", directory).spec
    assert (spec.sample_rate, spec.samples_per_frame, spec.frame_rate) == (24000, HOP, 12.5)
    assert (spec.num_codebooks, spec.codebook_size) == (4, 32)
    assert (spec.left_frames, spec.right_frames, spec.start_frames) == (0, 0, 0)


@pytest.mark.parametrize("total", [1, 2, 3, 5, 9, 40])
def test_streamed_decode_equals_one_shot_decode(codec: MimiCodec, dtype: torch.dtype, total: int) -> None:
    codes = random_codes(codec, 2, total, seed=total)
    whole = one_shot(codec.model, codes)
    assert whole.shape == (2, total * HOP)
    assert total < 9 or whole.abs().mean() > 0.05
    check_chunks(codec, codes, whole, TOLERANCE[dtype], 1, 2, 5, 25, total)


def test_utterances_at_different_positions_decode_in_one_batch(codec: MimiCodec, dtype: torch.dtype) -> None:
    """Row 0 has not filled its attention window yet, row 1 has exceeded it."""
    codes = random_codes(codec, 2, 40)
    check_places(codec, codes, one_shot(codec.model, codes), TOLERANCE[dtype], (5, 25))


def test_decoding_does_not_modify_the_input_state(codec: MimiCodec) -> None:
    codes, state = random_codes(codec, 1, 6), codec.initial_state(1)
    for _ in range(2):
        codec.decode(Window(codes, 0, 0, torch.tensor([0]), state))
        assert not state.any()


@pytest.mark.parametrize("dtype", [torch.float64], indirect=True)
def test_mimi_is_causal(codec: MimiCodec) -> None:
    frames = heard(partial(one_shot, codec.model), random_codes(codec, 1, 30), 12, 32)
    assert frames.nonzero()[0].item() == 12


@pytest.mark.parametrize("dtype", [torch.float64], indirect=True)
def test_every_part_of_the_state_affects_the_output(codec: MimiCodec) -> None:
    """Keys and values of the transformer come first after the upsampling, then the inputs of the convolutions."""
    codes = random_codes(codec, 1, 12)
    whole = one_shot(codec.model, codes)[:, 8 * HOP :]
    _, state = codec.decode(Window(codes[:, :, :8], 0, 0, torch.tensor([0]), codec.initial_state(1)))
    last_step = state.clone()
    last_step[:, :32] = 0
    keys = state.clone()
    keys[:, 32 : 32 + NUM_KEYS] = 0
    inputs = state.clone()
    inputs[:, 32 + NUM_KEYS :] = 0
    for changed, is_exact in ((state, True), (last_step, False), (keys, False), (inputs, False)):
        pcm, _ = codec.decode(Window(codes[:, :, 8:], 0, 0, torch.tensor([8]), changed))
        assert (largest(pcm - whole) <= 1e-12) == is_exact


def test_state_is_bounded_and_exact_beyond_the_attention_window(codec: MimiCodec, dtype: torch.dtype) -> None:
    codes = random_codes(codec, 1, 250)  # 500 steps, 25 windows
    state = codec.decode(Window(codes, 0, 0, torch.tensor([0]), codec.initial_state(1)))[1]
    convolutions = 32 * 6 + (32 + 16 + 8 + 4) + (16 + 8 + 4 + 2) * 2 + 2 * 2
    assert state.shape == codec.initial_state(1).shape == (1, 32 + NUM_KEYS + convolutions)
    check_chunks(codec, codes, one_shot(codec.model, codes), TOLERANCE[dtype], 3, 25, 250)


@pytest.mark.parametrize("samples", [1, 959, 1921, 9000, *by_night(2, 961, 1919, 1920, 48_017)])
def test_encoding_matches_transformers(directory: Path, samples: int) -> None:
    codec = load_codec("mimi", directory)
    published = MimiModel.from_pretrained(directory).eval()
    pcm = torch.randn(1, 1, samples, generator=torch.Generator().manual_seed(1)) / 4
    with torch.inference_mode():
        expected = published.encode(pcm).audio_codes
    check_codes(codec, pcm[0, 0].numpy(), expected[0])


def test_fewer_codebooks_use_the_first_ones() -> None:
    codec, full = MimiCodec(make_model()), MimiCodec(make_model())
    check_fewer_codebooks(codec, full, partial(one_shot, codec.model))


def test_empty_pcm_encodes_to_zero_frames(codec: MimiCodec) -> None:
    assert codec.encode(np.zeros(0, np.float32)).shape == (4, 0)


@pytest.mark.parametrize(
    "values",
    [
        {"pad_mode": "replicate"},
        {"use_causal_conv": False},
        {"use_conv_shortcut": True},
        {"hidden_act": "relu"},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ],
    ids=str,
)
def test_other_layers_are_refused(tmp_path: Path, values: dict) -> None:
    make_model(**values).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=next(iter(values))):
        load_codec("mimi", tmp_path)
