"""Convolutions as on tensor cores: errors of one convolution and of each codec, and what stays as it was."""

import re
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.convolutions import row_of
from benchmarks.decoder_memory import CHUNKS
from lab.releases.every_codec import every_codec, make_codec
from stretto.config import DecoderConfig
from stretto.decoder.memory import measure
from stretto.decoding.convolutions import (
    MIN_CHANNELS,
    ConvolutionCall,
    Convolutions,
    check_mode,
    convolutions_in,
    split,
    to_tf32,
)
from stretto.errors import CheckpointError
from stretto.testing.codec_streams import chunks_of, random_codes, stream
from stretto.testing.fake_gpu import Launches, layout_of_a_gpu
from tests.test_docs import ROOT
from tests.tiers import by_night

pytestmark = pytest.mark.slow
DOCUMENT = ROOT / "docs" / "gpu_sizes.md"
NUM_FRAMES = 12
KINDS = {"conv1d": F.conv1d, "conv_transpose1d": F.conv_transpose1d}
SHAPES = {  # keyword arguments of torch's functions
    "conv1d": [{}, {"padding": 3}, {"dilation": (3,), "padding": (2,)}],
    "conv_transpose1d": [{}, {"stride": 4, "padding": 2, "output_padding": 1}, {"stride": (3,)}],
}
CASES = [(kind, shape) for kind, shapes in SHAPES.items() for shape in shapes]
# Errors relative to the sum of the products' magnitudes: ten times the largest that is possible, or half the usual one.
MOST = {"exact": 10 * 2.0**-21, "tf32": 2.0**-10, "bfloat16": 2.0**-7}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers over three orders of magnitude."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random) * 10 ** (3 * torch.rand(shape, generator=random) - 2)


def operands(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return a signal, a weight and a bias; ten input and nine output channels."""
    shape = (9, 10, 4) if kind == "conv1d" else (10, 9, 4)
    return numbers(2, 10, 30), numbers(*shape, seed=1), numbers(9, seed=2)


def test_two_tf32_numbers_make_up_a_float32_number() -> None:
    x = numbers(1000)
    high, low = split(x)
    for part in (high, low):
        assert not (part.view(torch.int32) & 0x1FFF).any()
    assert ((x - high).abs() <= 2.0**-11 * x.abs()).all()
    assert ((x.double() - high - low).abs() <= 2.0**-22 * x.abs()).all()
    ties = torch.tensor([1 + 2.0**-11, -1 - 2.0**-11])
    assert to_tf32(ties).tolist() == [1 + 2.0**-10, -1 - 2.0**-10]


@pytest.mark.parametrize("precision", [*DecoderConfig.CONVOLUTIONS][1:])
@pytest.mark.parametrize(("kind", "shape"), CASES, ids=str)
def test_convolution_has_the_error_of_its_precision(kind: str, shape: dict, precision: str) -> None:
    function, (x, weight, bias) = KINDS[kind], operands(kind)
    exact = function(x.double(), weight.double(), bias.double(), **shape)
    scale = function(x.abs().double(), weight.abs().double(), bias.abs().double(), **shape)
    with convolutions_in(precision):
        found = function(x, weight, bias, **shape)
    assert found.dtype == torch.float32
    error = ((found - exact).abs() / scale).max().item()
    assert error <= MOST[precision]
    if precision != "exact":
        assert error > 2.0**-13, "operands are rounded"


def test_high_parts_alone_have_a_larger_error() -> None:
    """The bound above holds because of the two products with low parts."""
    x, weight, _ = operands("conv1d")
    exact, scale = F.conv1d(x.double(), weight.double()), F.conv1d(x.abs(), weight.abs())
    assert ((F.conv1d(to_tf32(x), to_tf32(weight)) - exact).abs() / scale).max() > 10 * MOST["exact"]


@pytest.mark.parametrize("precision", [*DecoderConfig.CONVOLUTIONS][1:])
def test_other_convolutions_are_unchanged(precision: str) -> None:
    """Few channels, groups, strides, dilated transposed ones and float64, and everything after the context."""
    x, weight, bias = operands("conv1d")
    few, grouped = numbers(MIN_CHANNELS - 1, 10, 4), numbers(10, 1, 4)

    def results() -> list[Tensor]:
        dilated = F.conv_transpose1d(x, weight.transpose(0, 1), dilation=2)
        wide = F.conv1d(x.double(), weight.double())
        return [F.conv1d(x, few), F.conv1d(x, grouped, groups=10), F.conv1d(x, weight, stride=2), dilated, wide]

    before = results()
    with convolutions_in(precision):
        after = results()
    assert all(map(torch.equal, before, after))
    plain = F.conv1d(x, weight, bias)
    with convolutions_in("float32"):
        assert torch.equal(F.conv1d(x, weight, bias), plain)


def test_weights_are_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, run = list[Tensor](), ConvolutionCall.run

    def record(call: ConvolutionCall, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weights.append(weight)
        return run(call, x, weight, bias)

    monkeypatch.setattr(ConvolutionCall, "run", record)
    x, weight, _ = operands("conv1d")
    convolutions = Convolutions("tf32x3")
    for _ in range(2):
        with convolutions:
            F.conv1d(x, weight)
    assert weights[0] is weights[1]
    assert convolutions.num_bytes == 3 * weight.nbytes
    weights.clear()
    del weight
    assert convolutions.num_bytes == 0


@pytest.mark.parametrize("mode", [*DecoderConfig.CONVOLUTIONS][1:])
def test_a_gpu_stores_one_copy_of_the_weights_and_no_copy_of_the_input(mode: str) -> None:
    x, weight = torch.empty(2, 10, 30, device="meta"), torch.empty(9, 10, 4, device="meta")
    convolutions = convolutions_in(mode)
    assert isinstance(convolutions, Convolutions)
    with convolutions, Launches() as launches, torch.inference_mode():
        F.conv1d(x, weight)
        launches.names.clear()
        assert F.conv1d(x, weight).shape == (2, 9, 27)
    assert launches.names == ["product"]
    assert convolutions.num_bytes == weight.nbytes


def test_copies_of_the_weights_count_as_memory() -> None:
    weights = {}
    for mode in DecoderConfig.CONVOLUTIONS:
        codec = every_codec("espnet_dac", is_narrow=True)
        weights[mode] = measure(codec, DecoderConfig(device="cuda", convolutions=mode)).weights
    copies = {mode: number - weights["float32"] for mode, number in weights.items()}
    assert copies["exact"] == copies["tf32"] == copies["bfloat16"] > 0


class WithoutConvolutions(nn.Linear):
    """Fake codec."""

    spec = SimpleNamespace(name="plain")


def test_mode_of_a_codec_without_convolutions_is_refused() -> None:
    codec: Any = WithoutConvolutions(2, 2)
    check_mode(codec, "float32")
    expected = "convolutions must be float32 for codec plain, which has none to change, got tf32"
    with pytest.raises(CheckpointError, match=expected):
        check_mode(codec, "tf32")
    check_mode(make_codec("xcodec", "cpu", is_narrow=True), "tf32")


@pytest.mark.parametrize("precision", ["exact", *by_night("tf32", "bfloat16")])
def test_chunks_join(precision: str) -> None:
    """Operands are rounded one by one, so a sample depends on chunk and batch only through the order of sums.

    In TF32 and half precision, a sum is rounded for the next layer: two orders may give neighbouring numbers.
    """
    codec = make_codec("qwen3_12hz_small", "cpu", is_narrow=True)
    codes = random_codes(codec, 2, NUM_FRAMES)
    with convolutions_in(precision), layout_of_a_gpu():
        whole = stream(codec, codes, [NUM_FRAMES])
        parts = [stream(codec, codes, chunks_of(size, NUM_FRAMES)) for size in (1, 5)]
        alone = torch.cat([stream(codec, codes[row : row + 1], [NUM_FRAMES]) for row in range(2)])
    error = max((each - whole).abs().max().item() for each in (*parts, alone))
    assert error <= {"exact": 1e-5, "tf32": 2.0**-8, "bfloat16": 2.0**-5}[precision]


@pytest.mark.parametrize("name", ["espnet_dac", *by_night(*sorted(set(CHUNKS) - {"espnet_dac"}))])
def test_error_of_codecs_is_as_documented(name: str) -> None:
    """With margins for processors that add in another order, which matters for exact only."""
    [line] = re.findall(rf"(?m)^\| `{name}` \| (?:narrow|published) \| (.*) \|$", DOCUMENT.read_text())
    found = row_of(name)
    for cell, precision in zip(line.split(" | "), [*DecoderConfig.CONVOLUTIONS][1:], strict=True):
        decibels = float(cell)
        if precision == "exact" or decibels == -inf:
            assert found.decibels[precision] <= decibels + 10
        else:
            assert found.decibels[precision] == pytest.approx(decibels, abs=6)
