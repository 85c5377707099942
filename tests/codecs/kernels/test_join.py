"""Inputs that a kernel joins with the state: against a loop over numbers, and in whole codecs."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.decoder_memory import Launches
from stretto.codecs.kernels.operators import KERNELS
from stretto.codecs.memory import Memory, num_kept
from stretto.codecs.qwen3_12hz.decoder import Decoder, ResidualUnit, SnakeBeta
from stretto.codecs.streaming import Elu, Snake
from tests.codecs.kernels.on_host import SHAPE, decoded, kernels_on_host, random_codes, small_decoder
from tests.codecs.streaming import largest

F32 = np.float32
# sin(angle) = angle + angle³ · series(angle²) in [-π/2, π/2], highest power first
SERIES = [F32(each) for each in (2.600054131e-06, -1.98066147e-4, 8.333017118e-3, -1.666665673e-1)]
PI_PARTS = [F32(each) for each in (3.140625, 9.67502593994140625e-4, 1.50995799e-7)]


def snake_of(number: np.float32, rate: np.float32, height: np.float32) -> np.float32:
    """Compute the activation as the kernel documents it, with one rounding for each operation."""
    angle = rate * number
    turns = np.floor(angle * F32(0.318309886) + F32(0.5))
    for piece in PI_PARTS:
        angle = angle - turns * piece
    square = angle * angle
    series = SERIES[0]
    for coefficient in SERIES[1:]:
        series = series * square + coefficient
    sine = angle + angle * square * series
    return number + height * (sine * sine)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def memory_of(batch: int, size: int, frames: int, right: int = 0) -> Memory:
    """Return a memory whose state has random numbers."""
    return Memory(numbers(batch, size, seed=1), torch.ones(batch), frames, right)


def factors(channels: int) -> SnakeBeta:
    snake = SnakeBeta(channels)
    nn.init.normal_(snake.alpha, generator=torch.Generator().manual_seed(2))
    nn.init.normal_(snake.beta, generator=torch.Generator().manual_seed(3))
    snake.join()
    return snake


@pytest.mark.parametrize("num_new", [1, 4, 7])
@pytest.mark.parametrize(("steps", "right"), [(3, 0), (6, 0), (5, 1)])
def test_kernel_matches_a_loop_over_numbers(num_new: int, steps: int, right: int) -> None:
    """Fewer new inputs than kept ones, as many, and more; with inputs that the next window contains again."""
    x = numbers(2, 5, num_new).transpose(0, 1).contiguous().transpose(0, 1)
    state = numbers(2, 40, seed=1)
    after = torch.zeros(2, 40)
    rate, height = (each.detach() for each in factors(5).repeated(1, 5))
    again = min(right, num_new)
    found = KERNELS["join"](x, state, after, 4, steps, again, 2, rate, height)
    expected = torch.empty(2, 5, steps + num_new)
    kept = torch.zeros(2, 40)
    for batch in range(2):
        for channel in range(5):
            begin = 4 + channel * steps
            expected[batch, channel, :steps] = state[batch, begin : begin + steps]
            for step in range(num_new):
                number = snake_of(*(F32(each) for each in (x[batch, channel, step], rate[channel], height[channel])))
                expected[batch, channel, steps + step] = float(number)
            kept[batch, begin : begin + steps] = expected[batch, channel, num_new - again :][:steps]
    assert torch.equal(found, expected)
    assert torch.equal(after, kept)


def test_sine_is_as_exact_as_float32() -> None:
    for largest_angle in (1.0, 100.0, 1e4):
        x = torch.linspace(-largest_angle, largest_angle, 2_000)[None, None]
        one = torch.ones(1)
        exact = x.double() + x.double().sin().square()
        found = KERNELS["join"](x, None, None, 0, 0, 0, 2, one, one)
        assert largest(found.double() - exact) <= 3e-7 + largest_angle * 2.0**-24


@pytest.mark.parametrize("activation", [None, Elu(), factors(4)])
@pytest.mark.parametrize(("time", "shape"), [(2, (2, 4, 6)), (1, (2, 6, 4))])
def test_memory_recalls_the_same_as_on_the_host(
    time: int, shape: tuple[int, ...], activation: Snake | Elu | None
) -> None:
    """Signals, and keys or values, whose steps are the second dimension."""
    activation = activation if time == 2 else None
    memories = [memory_of(2, 4 * 5, 3, right=1) for _ in range(2)]
    with torch.inference_mode():
        expected = memories[0].recall(numbers(*shape), 5, time, activation)
    with kernels_on_host():
        found = memories[1].recall(numbers(*shape), 5, time, activation)
    assert memories[1].is_complete
    for one, other in ((found, expected), (memories[1].after, memories[0].after)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_decoder_gives_the_same_as_on_the_host() -> None:
    """Torch rounds differently on a CPU; the kernel rounds each number in the same way in any chunk and batch."""
    decoder = small_decoder()
    codes = random_codes(2, 3)
    expected, expected_state = decoded(decoder, codes, [3])
    with kernels_on_host():
        samples, state = decoded(decoder, codes, [1, 2])
    assert largest(samples - expected) <= 1e-5
    assert largest(state - expected_state) <= 1e-5


def test_launches_on_a_gpu() -> None:
    """One kernel replaces Snake's operators, the concatenation with the state, and the copy of the next state."""
    decoder = small_decoder()
    layers = list(decoder.modules())
    num_recalls = sum(hasattr(layer, "kept") and layer.kept > 0 for layer in layers) + SHAPE.num_hidden_layers
    num_alone = sum(isinstance(layer, ResidualUnit) for layer in layers)
    names = launched(decoder.to("meta"), "meta")
    assert names.count("join") == num_recalls + num_alone
    assert "sin_" not in names


def launched(decoder: Decoder, device: str) -> list[str]:
    """Return the operators that compute on a device while two frames are decoded."""
    with torch.device(device):
        memory = Memory(torch.zeros(1, num_kept(decoder)), torch.zeros(1), 2)
        codes = torch.zeros(1, SHAPE.num_quantizers, 2, dtype=torch.int64)
        with Launches() as launches, torch.inference_mode():
            decoder(codes, torch.zeros(1), memory)
    return launches.names
