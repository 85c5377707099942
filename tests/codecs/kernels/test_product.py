"""Convolutions on tensor cores, in Triton's interpreter: their values, and one order of sums for chunks and batches.

The interpreter multiplies as `multiply_in_order` does: operands are rounded as by a tensor core and products are added
one after another. A tensor core adds those of one instruction in an order of its own, which is the same for each row of
a tile; `tests/engine/kernels/gpu/compile.py` checks that the compiled kernel uses tensor cores.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, _ir

from stretto.codecs.device import Convolving, Ending, Norm, StatePart, convolve, multiply
from stretto.config import DecoderConfig
from stretto.decoding.convolutions import convolutions_in, split, to_tf32
from stretto.testing.codec_streams import largest
from stretto.testing.fake_gpu import kernels_on_host
from tests.codecs.kernels.on_host import activations_of, decoded, factors, random_codes, small_decoder
from tests.tensor_cores import as_float, round_to_nearest
from tests.tiers import by_night

MODES = [*DecoderConfig.CONVOLUTIONS][1:]


def in_order(total: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Add the products of the columns of `left` with the rows of `right` to `total`, one after another."""
    for column, row in zip(left.T, right, strict=True):
        total = total + column[:, None] * row
    return total


def parts(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the high and the low TF32 part."""
    high, low = split(torch.from_numpy(np.ascontiguousarray(numbers)))
    return high.numpy(), low.numpy()


def added(total: np.ndarray, left: np.ndarray, right: np.ndarray, is_exact: bool) -> np.ndarray:
    """Add a product to `total`; in the mode `exact`, add three products to one another first."""
    if not is_exact:
        return in_order(total, left, right)
    (high, low), (right_high, right_low) = parts(left), parts(right)
    both = in_order(in_order(np.zeros_like(total), low, right_high), high, right_low)
    return total + in_order(both, high, right_high)


def multiply_in_order(
    self: InterpreterBuilder, left: TensorHandle, right: TensorHandle, total: TensorHandle, precision: Any, *_: Any
) -> TensorHandle:
    """Replace the interpreter's product, which ignores the precision."""
    is_exact = precision == _ir.INPUT_PRECISION.TF32x3
    numbers = [as_float(each) for each in (left, right)]
    return TensorHandle(added(total.data, *numbers, is_exact), total.dtype.scalar)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InterpreterBuilder, "create_dot", multiply_in_order)
    monkeypatch.setattr(InterpreterBuilder, "create_fp_trunc", round_to_nearest)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rounded(x: Tensor, mode: str) -> np.ndarray:
    if mode in ("float32", "exact"):
        return x.detach().numpy()
    return (to_tf32(x) if mode == "tf32" else x.bfloat16().float()).numpy()


def slow(x: Tensor, weight: Tensor, bias: Tensor, mode: str, padding: int, dilation: int) -> Tensor:
    """Convolve by the documented order: tap by tap, 32 channels at once, one output after another."""
    batch, channels, length = x.shape
    outputs, _, taps = weight.shape
    padded = rounded(F.pad(x, (padding, padding)), mode)
    factors = rounded(weight, mode)
    found = np.empty((batch, outputs, length + 2 * padding - (taps - 1) * dilation), np.float32)
    for row in range(batch):
        for step in range(found.shape[2]):
            total = np.zeros((1, outputs), np.float32)
            for tap in range(taps):
                for channel in range(0, channels, 32):
                    left = padded[row, channel : channel + 32, step + tap * dilation]
                    total = added(total, left[None], factors[:, channel : channel + 32, tap].T, mode == "exact")
            found[row, :, step] = total[0] + bias.numpy()
    return torch.from_numpy(found)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("outputs", "padding", "dilation"), [(9, 2, 1), (40, 0, 3)])
def test_kernel_matches_a_slow_loop_bit_by_bit(mode: str, outputs: int, padding: int, dilation: int) -> None:
    """Channels that do not fill a block of 32, and rows of two utterances in one tile."""
    x, weight, bias = numbers(2, 40, 12), numbers(outputs, 40, 3, seed=1), numbers(outputs, seed=2)
    with kernels_on_host(), convolutions_in(mode):
        found = F.conv1d(x, weight, bias, padding=padding, dilation=dilation)
    assert torch.equal(found, slow(x, weight, bias, mode, padding, dilation))


def random_layer(layer: Convolving, seed: int = 5) -> Convolving:
    """Return a layer of torch with random weights."""
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(0.3 * numbers(*weight.shape, seed=seed))
    return layer.requires_grad_(False)


@pytest.mark.parametrize("mode", ["float32", "exact"])
@pytest.mark.parametrize("late", [0, 2])
def test_residual_unit_matches_a_slow_loop_bit_by_bit(mode: str, late: int) -> None:
    """State, late inputs, bias, gain, residual and the activation of the next layer, for two windows in a row."""
    channels = 12
    conv = random_layer(nn.Conv1d(channels, channels, 3, dilation=4))
    snake = factors(channels)
    gain = numbers(channels, seed=6)
    x = numbers(2, channels, 9)
    residual = numbers(2, channels, 9, seed=7)
    first = torch.tensor([0, 3])
    state = numbers(2, 8 * channels, seed=8)
    begun = state.view(2, 8, channels).transpose(1, 2)
    inputs = torch.cat([begun, x], 2)
    inputs[0, :, 8 : 8 + late] = 0
    sums = slow(inputs, conv.weight, conv.bias, mode, 0, 4) * gain[:, None] + residual
    rate, height = snake.repeated(1, channels)
    expected = activations_of(sums, rate.detach(), height.detach())
    results = list[Tensor]()
    with kernels_on_host(), convolutions_in(mode):
        for begin, end in ((0, 5), (5, 9)):
            after = torch.empty_like(state)
            part = StatePart(state, after, 0, first + begin, late if begin == 0 else 0)
            ending = Ending(gain, residual[:, :, begin:end], snake)
            found = convolve(x[:, :, begin:end], conv, part, ending)
            results.append(torch.stack(found))
            state = after
    whole = torch.cat(results, 3)
    assert torch.equal(whole[0], sums)
    assert torch.equal(whole[1], expected)
    assert torch.equal(state.view(2, 8, channels).transpose(1, 2), inputs[:, :, -8:])


@pytest.mark.parametrize("mode", ["float32", "exact"])
def test_upsampling_continues_its_state_bit_by_bit(mode: str) -> None:
    """Two taps, of which the first reads the state, in any chunk and batch; the last samples come with the next one."""
    conv = random_layer(nn.ConvTranspose1d(10, 9, 6, 3))
    x = numbers(3, 10, 8)
    with kernels_on_host(), convolutions_in(mode):
        whole = upsampled(x, conv, [8])
        assert torch.equal(upsampled(x, conv, [1, 5, 2]), whole)
        assert torch.equal(upsampled(x[1:2], conv, [3, 5]), whole[1:2])
        expected = F.conv_transpose1d(x, conv.weight, conv.bias, stride=3)[:, :, : whole.shape[2]]
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-5)


def upsampled(x: Tensor, conv: Convolving, sizes: Sequence[int]) -> Tensor:
    """Return the outputs of a transposed convolution for windows of these sizes."""
    state = torch.zeros(len(x), x.shape[1])
    parts = list[Tensor]()
    for window in x.split(list(sizes), 2):
        after = torch.empty_like(state)
        parts.append(convolve(window, conv, StatePart(state, after, 0, None))[0])
        state = after
    return torch.cat(parts, 2)


@pytest.mark.parametrize("bias", [None, numbers(40, seed=3)])
def test_norm_precedes_a_product(bias: Tensor | None) -> None:
    """RMSNorm and LayerNorm of channels that do not fill a block; a row has the same bits in any batch."""
    x = numbers(3, 5, 40)
    weight = numbers(20, 40, seed=1)
    scale = numbers(40, seed=2)
    plain = F.rms_norm(x, (40,), scale, 1e-5) if bias is None else F.layer_norm(x, (40,), scale, bias, 1e-5)
    with kernels_on_host():
        whole = multiply(x, weight, norm=Norm(scale, bias, 1e-5))
        assert torch.equal(multiply(x[1:2, 3:], weight, norm=Norm(scale, bias, 1e-5)), whole[1:2, 3:])
    torch.testing.assert_close(whole, plain @ weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("kernel", "shape"),
    [
        (6, {"stride": 3}),
        (6, {"stride": 3, "padding": 2, "output_padding": 1}),
        (5, {"stride": 2, "padding": 1}),
        (2, {"stride": 2}),
        (3, {}),
    ],
)
def test_transposed_convolution_is_a_product(kernel: int, shape: dict[str, int], mode: str) -> None:
    """Kernels of two strides, of an odd multiple, and of one; cut at both ends."""
    x, weight, bias = numbers(2, 10, 7), numbers(10, 9, kernel, seed=1), numbers(9, seed=2)
    with convolutions_in(mode):  # torch, with rounded operands
        expected = F.conv_transpose1d(x, weight, bias, **shape)
    with kernels_on_host(), convolutions_in(mode):
        found = F.conv_transpose1d(x, weight, bias, **shape)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_sample_has_the_same_bits_in_any_chunk_and_batch() -> None:
    """At other places of a tile, in another tile, and in the layout of a transformer's output."""
    x, weight, bias = numbers(3, 33, 40), numbers(20, 33, 7, seed=1), numbers(20, seed=2)
    with kernels_on_host(), convolutions_in("exact"):
        whole = F.conv1d(x, weight, bias)
        for first, last in ((0, 1), (5, 17), (28, 34)):
            chunk = x[:, :, first : last + 6]
            assert torch.equal(F.conv1d(chunk, weight, bias), whole[:, :, first:last])
            assert torch.equal(F.conv1d(chunk[1:2], weight, bias), whole[1:2, :, first:last])
        time_major = x.transpose(1, 2).contiguous().transpose(1, 2)
        assert torch.equal(F.conv1d(time_major, weight, bias), whole)


@pytest.mark.parametrize(("mode", "bound"), [("exact", 2e-5), *by_night(("tf32", 2e-2), ("bfloat16", 0.1))])
def test_decoder_has_the_error_of_its_mode(mode: str, bound: float) -> None:
    decoder = small_decoder()
    codes = random_codes(2, 2)
    expected, _ = decoded(decoder, codes, [2])
    with kernels_on_host(), convolutions_in(mode):
        whole, _ = decoded(decoder, codes, [2])
    assert largest(whole - expected) <= bound
    if mode != "exact":
        assert largest(whole - expected) > 1e-4, "operands are rounded"
