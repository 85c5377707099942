"""Activations of a row have the same bits in every batch, with any number of threads."""

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.activation import SiluAndMul

from stretto.cpu_backend.products import silu_and_mul, use_cpu_layers
from stretto.engine.models.latents import silu
from tests.engine.kernels.cpu.activations import assert_batch_invariant, num_threads, random_rows

__all__ = ["num_threads"]

ACTIVATED = {"silu": silu, "silu_and_mul": silu_and_mul}


@pytest.mark.parametrize("name", ACTIVATED)
def test_activations_are_batch_invariant(name: str, num_threads: int) -> None:
    assert_batch_invariant(ACTIVATED[name])


def test_models_of_vllm_get_the_batch_invariant_activation() -> None:
    config = VllmConfig()
    with set_current_vllm_config(config):
        layer = SiluAndMul()
    use_cpu_layers(torch.nn.Sequential(layer), config)
    assert layer._forward_method is silu_and_mul
    x = random_rows(96)
    assert layer(x).equal(torch.cat([SiluAndMul.forward_native(row) for row in x.split(1)]))
