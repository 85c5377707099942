"""Activations of a row have the same bits in every batch, with any number of threads."""

from collections.abc import Callable, Iterator

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.activation import SiluAndMul

from stretto.cpu_backend.products import silu_and_mul, use_cpu_layers
from stretto.engine.models.latents import silu
from stretto_pocket.phonon.model import StrettoPhononForCausalLM
from stretto_pocket.pocket_tts.model import gelu_tanh
from tests.tiers import by_night

Activation = Callable[[torch.Tensor], torch.Tensor]
NUM_ROWS = 100
# Multiples of 64, of the number of elements in a vector, and of neither; the last rows are divided among threads alone.
WIDTHS = (8, 40, 100, 1000, 1024, 1376, 4096, 4864, 8960, 40_000)


@pytest.fixture(params=[3, *by_night(1, 2, 4, 5, 8)])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random_rows(width: int) -> torch.Tensor:
    return torch.randn(NUM_ROWS, width, generator=torch.Generator().manual_seed(width))


ACTIVATED: dict[str, Activation] = {
    "silu": silu,
    "gelu_tanh": gelu_tanh,
    "gelu": StrettoPhononForCausalLM.activate,
    "silu_and_mul": silu_and_mul,
}


@pytest.mark.parametrize("name", ACTIVATED)
def test_activations_are_batch_invariant(name: str, num_threads: int) -> None:
    """Torch's own activations are not, because the ends of the threads' parts are computed otherwise."""
    activate = ACTIVATED[name]
    for width in WIDTHS:
        x = random_rows(width)
        expected = torch.cat([activate(row) for row in x.split(1)])
        assert activate(x).equal(expected), width
        for first, stop in ((0, 2), (0, 17), (31, 64), (1, 100)):
            assert activate(x[first:stop]).equal(expected[first:stop]), (width, first, stop)


def test_models_of_vllm_get_the_batch_invariant_activation() -> None:
    config = VllmConfig()
    with set_current_vllm_config(config):
        layer = SiluAndMul()
    use_cpu_layers(torch.nn.Sequential(layer), config)
    assert layer._forward_method is silu_and_mul
    x = random_rows(96)
    assert layer(x).equal(torch.cat([SiluAndMul.forward_native(row) for row in x.split(1)]))
