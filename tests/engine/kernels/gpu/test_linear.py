"""Float32 linear layers on a GPU, in Triton's interpreter: a row's result is the same in every batch."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.model_executor.layers.linear import ReplicatedLinear, UnquantizedLinearMethod

from stretto.engine.kernels.gpu import linear
from stretto.engine.kernels.gpu.linear import RowInvariantLinear, linear_on_device, use_row_invariant_products
from tests.tiers import by_night


def add_one_by_one(
    self: InterpreterBuilder, left: TensorHandle, right: TensorHandle, total: TensorHandle, *_: Any
) -> TensorHandle:
    """Add products in the order of a GPU, with one rounding each; `tests/engine/kernels/gpu/compile.py` checks it."""
    summed = total.data
    for column, row in zip(np.moveaxis(left.data, -1, 0), np.moveaxis(right.data, -2, 0), strict=True):
        product = column[..., :, None].astype(np.float64) * row[..., None, :]
        summed = (product + summed).astype(np.float32)
    return TensorHandle(summed, total.dtype.scalar)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InterpreterBuilder, "create_dot", add_one_by_one)


@pytest.fixture
def operator() -> Iterator[None]:
    """Let the custom operator run on tensors in host memory."""
    library = torch.library.Library("stretto", "FRAGMENT")
    library.impl("linear", linear_on_device, "CPU")
    yield
    library._destroy()


def make(num_rows: int, num_columns: int, num_inner: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return rows, a weight in the layout of the kernels and a bias."""
    random = torch.Generator().manual_seed(num_rows + num_inner)
    x, weight = (
        torch.randn(num_rows, num_inner, generator=random),
        torch.randn(num_inner, num_columns, generator=random),
    )
    return x, weight.t(), torch.randn(num_columns, generator=random)


def slow(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute the documented order of sums with loops over rows and inner columns."""
    out = np.zeros((len(x), len(weight)), np.float32)
    chunk = -(-x.shape[1] // 256) * 32
    for index, row in enumerate(x.double().numpy()):
        for first in range(0, x.shape[1], chunk):
            part = np.zeros(len(weight), np.float32)
            for inner in range(first, min(first + chunk, x.shape[1])):
                part = (row[inner] * weight[:, inner].double().numpy() + part).astype(np.float32)
            out[index] += part
    return torch.from_numpy(out) + (0 if bias is None else bias)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(
    ("num_rows", "num_columns", "num_inner"), [(3, 40, 300), (1, 16, 32), (17, 5, 8), (130, 70, 48)]
)
def test_products_match_a_slow_loop(num_rows: int, num_columns: int, num_inner: int, has_bias: bool) -> None:
    x, weight, bias = make(num_rows, num_columns, num_inner)
    given = bias if has_bias else None
    found = linear_on_device(x, weight, given)
    assert torch.equal(found, slow(x, weight, given))
    exact = x.double() @ weight.double().t() + (bias.double() if has_bias else 0)
    # Other instructions round sums of up to 300 products by up to 6e-6.
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


SOME = pytest.param((2, 15, 16, 17, 33, 128, 129, 200), id="some")


@pytest.mark.parametrize("min_wide_tiles", [1, 2])
@pytest.mark.parametrize("sizes", [SOME, *by_night(range(1, 131), ids=["all"])])
def test_row_is_bit_identical_in_batches_of_all_sizes(
    sizes: Sequence[int], min_wide_tiles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of few rows have 16 or 32 columns. More than 128 rows are computed by the other kernel."""
    monkeypatch.setattr(linear, "MIN_WIDE_TILES", min_wide_tiles)
    x, weight, bias = make(max(sizes), 20, 40)
    alone = torch.cat([linear_on_device(row, weight, bias) for row in x[:40].split(1)])
    for size in sizes:
        together = linear_on_device(x[:size], weight, bias)
        assert torch.equal(together[:40], alone[:size]), size
        assert torch.equal(together[-1:], linear_on_device(x[size - 1 : size], weight, bias)), size


def test_rows_of_a_wider_tensor_are_read_in_place() -> None:
    x, weight, bias = make(5, 16, 64)
    found = linear_on_device(torch.cat([x, x], 1)[:, 64:], weight, bias)
    assert torch.equal(found, linear_on_device(x, weight, bias))


def test_layers_use_the_products(operator: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_state, "_TP", SimpleNamespace(rank_in_group=0, world_size=1))
    with set_current_vllm_config(VllmConfig()):
        model = nn.ModuleList(ReplicatedLinear(48, 24, bias=True, return_bias=False, disable_tp=True) for _ in range(2))
        other = ReplicatedLinear(48, 24, params_dtype=torch.bfloat16, return_bias=False, disable_tp=True)
    model.append(other)
    x = torch.randn(2, 3, 48)
    for layer in model[:2]:
        for parameter in layer.parameters():
            parameter.data = torch.randn_like(parameter)
    expected = [nn.functional.linear(x, layer.weight, layer.bias) for layer in model[:2]]
    with torch.inference_mode():
        use_row_invariant_products(model)
    assert type(other.quant_method) is UnquantizedLinearMethod
    for layer, wanted in zip(model[:2], expected, strict=True):
        assert isinstance(layer.quant_method, RowInvariantLinear)
        torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-4)  # sums of 48 products, in any order
        assert layer.weight.shape == (24, 48)
        assert not layer.weight.is_inference()


def test_operator_has_shapes_without_data() -> None:
    x, weight = torch.empty(3, 48, device="meta"), torch.empty(24, 48, device="meta")
    assert torch.ops.stretto.linear(x, weight, None).shape == (3, 24)
