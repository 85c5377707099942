"""Layers of codecs on a GPU, in Triton's interpreter: filters, activations and states."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.causal import Convolution, Link, run_links
from stretto.codecs.device import Convolving, Ending, StatePart, convolve
from stretto.codecs.memory import Memory, num_kept
from stretto.codecs.streaming import Elu, Snake, activated_on_device
from stretto.testing.codec_streams import largest
from stretto.testing.fake_gpu import kernels_on_host
from tests.codecs.kernels.on_host import activations_of, factors


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_activation_matches_a_loop_over_numbers() -> None:
    x = numbers(2, 5, 7)
    rate, height = (factor.detach() for factor in factors(5).repeated(1, 5))
    with kernels_on_host():
        assert torch.equal(activated_on_device(x, rate, height), activations_of(x, rate, height))


def test_sine_is_as_exact_as_float32() -> None:
    for largest_angle in (1.0, 100.0, 1e4):
        x = torch.linspace(-largest_angle, largest_angle, 2_000)[None, None]
        one = torch.ones(1)
        exact = x.double() + x.double().sin().square()
        with kernels_on_host():
            found = activated_on_device(x, one, one)
        assert largest(found.double() - exact) <= 3e-7 + largest_angle * 2.0**-24


@pytest.mark.parametrize("num_new", [1, 4, 7])
@pytest.mark.parametrize(("dilation", "again"), [(1, 0), (3, 0), (2, 1)])
def test_filters_match_a_loop_over_numbers(num_new: int, dilation: int, again: int) -> None:
    """Fewer new inputs than kept ones, as many, and more; with inputs that the next window contains again."""
    conv = nn.Conv1d(5, 5, 3, dilation=dilation, groups=5).requires_grad_(False)
    x = numbers(2, 5, num_new)
    kept = 2 * dilation
    state = numbers(2, 40, seed=1)[:, 4 : 4 + 5 * kept]
    after = torch.zeros(2, 40)
    inputs = torch.cat([state.view(2, kept, 5).transpose(1, 2), x], 2).numpy()
    expected = np.empty((2, 5, num_new), np.float32)
    for batch, channel, step in np.ndindex(*expected.shape):
        total = conv.bias[channel].numpy()
        for tap in range(3):
            total = total + inputs[batch, channel, step + tap * dilation] * conv.weight[channel, 0, tap].numpy()
        expected[batch, channel, step] = total
    with kernels_on_host():
        part = StatePart(state, after[:, 4 : 4 + 5 * kept], again, None)
        found, active = convolve(x, conv, part, Ending(activation=Elu()))
    assert np.array_equal(found.numpy(), expected)
    torch.testing.assert_close(active, F.elu(found), rtol=0, atol=1e-6)
    last = inputs[:, :, num_new - again :][:, :, :kept]
    assert np.array_equal(after[:, 4 : 4 + 5 * kept].view(2, kept, 5).transpose(1, 2).numpy(), last)
    assert not after[:, :4].any()
    assert not after[:, 4 + 5 * kept :].any()


def test_filters_of_a_transposed_convolution() -> None:
    """Two taps for each of three samples of a step, in one window and in two."""
    conv = nn.ConvTranspose1d(5, 5, 6, 3, groups=5).requires_grad_(False)
    x = numbers(2, 5, 4)
    expected = F.conv_transpose1d(x, conv.weight, conv.bias, stride=3, groups=5)[:, :, :12]
    with kernels_on_host():
        whole = windows(x, conv, [4])
        assert torch.equal(windows(x, conv, [1, 3]), whole)
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-5)


def windows(x: Tensor, conv: Convolving, sizes: list[int]) -> Tensor:
    """Return the outputs of a transposed convolution for windows of these sizes."""
    state = torch.zeros(len(x), x.shape[1])
    parts = list[Tensor]()
    for window in x.split(sizes, 2):
        after = torch.empty_like(state)
        parts.append(convolve(window, conv, StatePart(state, after, 0, None))[0])
        state = after
    return torch.cat(parts, 2)


@pytest.mark.parametrize("activation", [None, Elu(), factors(8)])
def test_linked_layers_give_the_same_as_on_the_host(activation: Snake | Elu | None) -> None:
    """Activations after a layer are those before the next one; late inputs are zeros; the window has right context."""
    layers = [Convolution(8, 8, 3, dilation=2), Convolution(8, 8, 1), Convolution(8, 8, 2)]
    layers[2].late = 2
    for layer in layers:
        layer.requires_grad_(False)
    links = [
        Link(layers[0]),
        Link(layers[1], activation, begins_residual=True),
        Link(layers[2], activation, ends_residual=True),
    ]
    x = numbers(2, 8, 6)
    first = torch.tensor([0, 4])
    before = torch.zeros(2, num_kept(*layers))
    with torch.inference_mode():
        memory = Memory(before, first, 3, right=1)
        middle = layers[0](x, memory)
        expected = layers[2](layers[1](middle, memory, activation), memory, activation) + middle
    with kernels_on_host():
        launched = Memory(before, first, 3, right=1)
        found = run_links(links, x, launched)
    assert launched.is_complete
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    begin = 0
    for layer in layers:
        size = layer.kept
        of_host = memory.after[:, begin : begin + size].view(2, 8, -1)
        of_kernel = launched.after[:, begin : begin + size].view(2, -1, 8).transpose(1, 2)
        torch.testing.assert_close(of_kernel, of_host, rtol=0, atol=1e-5)
        begin += size


def test_layers_of_torch_read_and_write_rows() -> None:
    """Layers without a kernel copy their parts of the states."""
    memory = Memory(numbers(4, 6), torch.zeros(2), 5, rows=torch.tensor([[0, 3], [2, 1]]))
    before = memory.after.clone()
    x = numbers(2, 3, 5, seed=1)
    both = memory.recall(x, 2)
    assert torch.equal(both[:, :, :2], before[[0, 3]].view(2, 3, 2))
    assert torch.equal(memory.after[[2, 1]].view(2, 3, 2), x[:, :, 3:])
    assert torch.equal(memory.after[[0, 3]], before[[0, 3]])


@pytest.mark.parametrize("num_channels", [5, 130])  # in one and in two programs of the kernel
def test_sums_of_entries_match_a_loop_over_codebooks(num_channels: int) -> None:
    entries = numbers(5, 4, num_channels)
    codes = torch.randint(4, (2, 5, 3), generator=torch.Generator().manual_seed(1))
    last_code = 2
    groups = []
    for books in ([0], [1, 2], [3, 4]):
        read = [codes[:, book] if book == 0 else codes[:, book].clamp(max=last_code) for book in books]
        total = torch.zeros(2, 3, num_channels)
        for book, code in zip(books, read, strict=True):
            total = total + entries[book][code]
        groups.append(total * 0.5)
    with kernels_on_host():
        sums = torch.ops.stretto.sum_entries(codes, entries, 1, 2, last_code, 0.5)
    assert torch.equal(sums, torch.cat(groups, 2))
