"""Convolutions on time-major signals equal torch's layers up to rounding, in every precision and kind of batch."""

import pytest
import torch
from torch import Tensor, nn

from lab.releases.random_qwen3_codec import make_qwen3_codec
from stretto.codecs import causal as decoder
from stretto.codecs import streaming
from stretto.codecs.base import Window
from stretto.codecs.causal import EPS, SnakeBeta
from stretto.codecs.streaming import (
    Elu,
    Upsampling,
    convolve,
    is_time_major,
    joined,
    linear,
    prepare,
    prepare_products,
    upsample,
)
from stretto.testing.codec_streams import random_codes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let oneDNN compute products of any size."""
    monkeypatch.setattr(streaming, "MIN_PRODUCT", 0)


DTYPES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]


def signal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a time-major signal [B, C, n]; equal shapes give equal numbers."""
    batch, channels, steps = shape
    drawn = torch.randn(batch, steps, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn.to(dtype).transpose(1, 2)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "dilation", "groups"), [(7, 9, 1), (3, 1, 6), (1, 1, 1)])
@pytest.mark.usefixtures("small_products")
@torch.inference_mode()
def test_convolutions_match_torch(
    dtype: torch.dtype, tolerance: float, kernel: int, dilation: int, groups: int
) -> None:
    layer = nn.Conv1d(6, 12, kernel, dilation=dilation, groups=groups).to(dtype)
    x = signal(3, 6, 80, dtype=dtype)
    expected = layer(x.contiguous())
    assert torch.equal(convolve(x.contiguous(), layer), expected)
    weight = layer.weight.clone()
    prepare(layer)
    assert torch.equal(layer.weight, weight)
    made = convolve(x, layer)
    assert is_time_major(made)
    torch.testing.assert_close(made, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "rate"), [(6, 3), (4, 4), (6, 2)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("max_joined", [0, streaming.MAX_JOINED], ids=["two products", "one product"])
@pytest.mark.usefixtures("small_products")
@torch.no_grad()
def test_upsampling_matches_a_trimmed_transposed_convolution(
    dtype: torch.dtype,
    tolerance: float,
    kernel: int,
    rate: int,
    has_bias: bool,
    max_joined: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "MAX_JOINED", max_joined)
    layer, before = nn.ConvTranspose1d(6, 4, kernel, rate, bias=has_bias).to(dtype), kernel // rate - 1
    x = signal(2, 6, before + 9, dtype=dtype)
    expected = layer(x.contiguous())[..., before * rate : (before + 9) * rate]
    assert torch.equal(upsample(x.contiguous(), layer), expected)
    prepare(layer)
    assert isinstance(layer, Upsampling) == (before > 0 and max_joined > 0)
    for factor in (1, 0.5):  # changed weights are used after they have been prepared again
        for parameter in layer.parameters():
            parameter.data.mul_(factor)
        prepare(layer)
        torch.testing.assert_close(upsample(x, layer), factor * expected, rtol=0, atol=tolerance)


@pytest.fixture
def upsampling() -> Upsampling:
    """Return a layer whose parameters were made in inference mode, without gradients."""
    with torch.inference_mode():
        layer = nn.ConvTranspose1d(6, 4, 6, 3).double().requires_grad_(False)
        prepare(layer)
    assert isinstance(layer, Upsampling)
    return layer


@torch.no_grad()
def test_upsampling_uses_parameters_of_inference_mode(upsampling: Upsampling) -> None:
    x = signal(2, 6, 10)
    torch.testing.assert_close(upsample(x, upsampling), upsampling(x.contiguous())[..., 3:30], rtol=0, atol=1e-12)


class Upsampled(nn.Module):
    """Model of a single layer for `upsample`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ConvTranspose1d(6, 4, 6, 3).double()
        prepare(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of the layer."""
        return upsample(x, self.layer)


@torch.no_grad()
def test_upsampling_can_be_exported() -> None:
    model, x = Upsampled(), signal(2, 6, 10)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x), rtol=0, atol=1e-12)


def test_gradients_of_upsampling_and_elu_match_torch() -> None:
    """The input and the weights have gradients, with an output that is written in place too."""
    model, x, before = Upsampled(), signal(2, 6, 9).requires_grad_(), signal(2, 6, 1)
    results = []
    for is_streaming in (True, False):
        if is_streaming:
            made = Elu()(model(joined(before, x, Elu())))
        else:
            made = nn.functional.elu(model.layer(torch.cat([before, nn.functional.elu(x)], 2))[..., 3:30])
        results.append([made, *torch.autograd.grad(made.square().sum(), [x, *model.parameters()])])
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=str)
@torch.inference_mode()
def test_elu_matches_its_formula_in_both_layouts(dtype: torch.dtype, tolerance: float) -> None:
    x = 4 * signal(2, 12, 97, dtype=dtype)
    x[0, 0, :4] = torch.tensor([0.0, -1e4, 1e4, 1e-5])
    expected = nn.functional.elu(x.double())
    for each in (x, x.contiguous()):
        torch.testing.assert_close(Elu()(each).double(), expected, rtol=0, atol=tolerance)
        torch.testing.assert_close(Elu()(each, torch.empty_like(each)).double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("has_bias", [True, False])
@torch.inference_mode()
def test_large_products_are_computed_by_onednn(has_bias: bool) -> None:
    layer = prepare_products(nn.Sequential(nn.Linear(96, 160, has_bias)))[0]
    x = signal(3, 96, 200, dtype=torch.float32).transpose(1, 2)
    expected = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double() if has_bias else None)
    with torch.profiler.profile() as profile:
        made = layer(x)
    assert "mkldnn::_linear_pointwise" in {each.key for each in profile.key_averages()}
    torch.testing.assert_close(made.double(), expected, rtol=0, atol=2e-5)
    strided = layer.weight.T.contiguous().T
    torch.testing.assert_close(linear(x, strided, layer.bias).double(), expected, rtol=0, atol=2e-5)


def snake() -> SnakeBeta:
    """Return an activation with factors from about 0.1 to 10."""
    made = SnakeBeta(12).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for weight in made.parameters():
        weight.data.copy_(torch.randn(12, generator=generator))
    return made


def expected_snake(layer: SnakeBeta, x: Tensor) -> Tensor:
    """Return the activations in float64."""
    alpha, beta = (each.double().exp()[:, None] for each in (layer.alpha, layer.beta))
    return x.double() + (alpha * x.double()).sin().square() / (beta + EPS)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=str)
@pytest.mark.parametrize("steps", [1, 7, 96])
@torch.no_grad()
def test_snake_matches_its_formula_in_both_layouts(dtype: torch.dtype, tolerance: float, steps: int) -> None:
    layer, x, before = snake().to(dtype), signal(2, 12, steps, dtype=dtype), signal(2, 12, 5, dtype=dtype)
    expected = expected_snake(layer, x)
    for each in (x, x.contiguous()):
        torch.testing.assert_close(layer(each).double(), expected, rtol=1e-6, atol=tolerance)
        both = joined(before, each, layer)
        assert torch.equal(both[..., :5], before)
        torch.testing.assert_close(both[..., 5:].double(), expected, rtol=1e-6, atol=tolerance)


@torch.no_grad()
def test_snake_uses_updated_weights_once_they_are_prepared() -> None:
    layer, x = snake(), signal(2, 12, 96, dtype=torch.float32)
    for _ in range(2):
        prepare(layer)
        assert layer.joined_factors is not None
        torch.testing.assert_close(layer(x).double(), expected_snake(layer, x), rtol=1e-6, atol=1e-5)
        layer.alpha.mul_(0.5)
    exact = layer.double()
    torch.testing.assert_close(exact(x.double()), expected_snake(exact, x), rtol=0, atol=1e-12)


@torch.inference_mode()
def test_snake_uses_parameters_of_inference_mode() -> None:
    """Such parameters have no version by which a change could be noticed."""
    layer, x = snake(), signal(2, 12, 96, dtype=torch.float32)
    expected = expected_snake(layer, x)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-6, atol=1e-5)
    prepare(layer)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-6, atol=1e-5)


def test_gradients_of_a_prepared_snake_match_its_formula() -> None:
    layer, x = snake().double().requires_grad_(), signal(2, 12, 96).requires_grad_()
    prepare(layer)
    results = []
    for made in (layer(x), expected_snake(layer, x)):
        results.append(torch.autograd.grad(made.square().sum(), [x, *layer.parameters()]))
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-9)


def test_batch_split_for_the_cache_gives_equal_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = make_qwen3_codec("narrow").double()
    codes, first = random_codes(codec, 5, 6), torch.zeros(5, dtype=torch.int64)
    results = []
    for size in (1 << 40, 60_000, 1):
        monkeypatch.setattr(decoder, "CACHE_BYTES", size)
        pcm, state = codec.decode(Window(codes, 0, 0, first, codec.initial_state(5)))
        later, _ = codec.decode(Window(codes, 0, 0, first + 6, state))
        results.append(torch.cat([pcm, later], 1))
    assert results[0].abs().max() > 0.05
    for each in results[1:]:
        torch.testing.assert_close(each, results[0], rtol=0, atol=1e-12)
