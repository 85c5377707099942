"""Networks that a config makes too large are refused while they are built."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from stretto.errors import CheckpointError
from stretto.weights import bounded_networks as bounds
from stretto.weights.bounded_networks import bounded_networks


class Leaf(nn.Module):
    """Module with a buffer only."""

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(size))


class Parent(nn.Module):
    """Module with a child only."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Identity()


@pytest.mark.parametrize("make", [lambda: nn.Linear(1, 1), Leaf, Parent], ids=["parameters", "buffers", "modules"])
def test_endless_construction_is_refused(make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_PARTS", 1000)
    with bounded_networks():
        nn.ModuleList(make() for _ in range(300))
    with (
        pytest.raises(CheckpointError, match="expected networks of at most 1000 modules and tensors"),
        torch.device("meta"),
        bounded_networks(),
    ):
        nn.ModuleList([make() for _ in range(1 << 63)])
    nn.ModuleList(make() for _ in range(1001))  # the limit has ended


def test_number_of_allocated_elements_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_ALLOCATED", 1000)
    with bounded_networks():
        Leaf(1000)
        with torch.device("meta"):
            Leaf(1_000_000)
    with pytest.raises(CheckpointError, match="and 1000 elements, got more"), bounded_networks():
        Leaf(1001)
