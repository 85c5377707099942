"""Muon's orthogonalisation, and that both optimisers learn."""

import copy

import pytest
import torch

from training.tiny.network import Network, NetworkConfig
from training.tiny.optimiser import Optimiser, orthogonalise


@pytest.mark.parametrize("shape", [(2, 32, 64), (2, 64, 32)])
def test_orthogonalised_singular_values_are_close_to_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_training_resumes_exactly_where_it_stopped() -> None:
    config = NetworkConfig(32, 2, 2, 1, 16, 48)

    def step(network: Network, optimiser: Optimiser) -> None:
        optimiser.zero_grad()
        (network(torch.arange(1, 46).view(1, 5, 9)) @ network.lm_head.weight.T).square().mean().backward()
        optimiser.step(0.5)

    torch.manual_seed(0)
    first = Network(config)
    optimiser = Optimiser(first)
    step(first, optimiser)
    second = Network(config)
    resumed = Optimiser(second)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimiser.state_dict()))  # torch would share the tensors
    step(first, optimiser)
    step(second, resumed)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
