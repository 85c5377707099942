"""Products of few rows, in Triton's interpreter: their values, and equal bits for a row among any number of rows.

The interpreter adds products one after another. A tensor core adds those of one instruction in an order of its own,
which is the same for each row; `compile.py` checks the order of the instructions.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.model_executor.layers.linear import ReplicatedLinear

from stretto.engine.kernels.gpu.row_products import BLOCK_INNER, RowProduct, StockProduct, product_of
from tests.tensor_cores import as_float, round_to_nearest

NUM_ROWS = 80  # five tiles, of which one program computes four
COUNTS = (1, 5, 16, 17, 64)
ALONE = (0, 4, 15, 16, 63, 79)
DTYPES = [torch.float32, torch.bfloat16]
# Parts that all have columns, of which one has fewer; a part for each column; more blocks than one; odd sizes.
SIZES = {
    torch.float32: [(40, 300), (16, 8), (5, 260)],
    torch.bfloat16: [(40, 1000), (16, 8), (5, 1100)],
}


def multiply_in_order(
    self: InterpreterBuilder, left: TensorHandle, right: TensorHandle, total: TensorHandle, *_: Any
) -> TensorHandle:
    """Add the products of the columns of `left` with the rows of `right` to `total`, one after another."""
    summed = total.data
    pairs = zip(np.moveaxis(as_float(left), -1, 0), np.moveaxis(as_float(right), -2, 0), strict=True)
    for column, row in pairs:
        summed = summed + column[..., :, None] * row[..., None, :]
    return TensorHandle(summed, total.dtype.scalar)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InterpreterBuilder, "create_dot", multiply_in_order)
    monkeypatch.setattr(InterpreterBuilder, "create_fp_trunc", round_to_nearest)


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def norm_of(width: int, dtype: torch.dtype) -> Any:
    weight = 1 + 0.3 * numbers(width, dtype=torch.float32, seed=7)
    return SimpleNamespace(weight=weight.to(dtype), variance_epsilon=1e-5)


def slow(x: Tensor, weight: Tensor) -> Tensor:
    """Compute the documented order of sums with a loop over the inner columns of each part."""
    block = BLOCK_INNER[x.dtype]
    chunk = -(-x.shape[1] // (8 * block)) * block
    rows, columns = x.float().numpy(), weight.float().numpy()
    parts = np.zeros((8, len(x), len(weight)), np.float32)
    for inner in range(x.shape[1]):
        parts[inner // chunk] += rows[:, inner, None] * columns[None, :, inner]
    while len(parts) > 1:
        low, high = np.split(parts, 2)
        parts = low + high
    return torch.from_numpy(parts[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", range(3))
def test_products_match_a_slow_loop(dtype: torch.dtype, case: int) -> None:
    num_outputs, num_inner = SIZES[dtype][case]
    weight = numbers(num_outputs, num_inner, dtype=dtype, seed=1)
    bias = numbers(num_outputs, dtype=dtype, seed=2)
    x, residual = numbers(19, num_inner, dtype=dtype), numbers(19, num_outputs, dtype=dtype, seed=3)
    expected = slow(x, weight)
    assert torch.equal(RowProduct(weight, dtype=torch.float32)(x), expected)
    assert torch.equal(RowProduct(weight, bias)(x, residual), (expected + bias.float() + residual.float()).to(dtype))
    exact = F.linear(x.double(), weight.double()).float()
    torch.testing.assert_close(expected, exact, rtol=1e-4, atol=1e-4)  # sums of 1,100 products


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_and_gates_match_torch(dtype: torch.dtype) -> None:
    num_inner = SIZES[dtype][0][1]
    weight, x = numbers(48, num_inner, dtype=dtype, seed=1), 3 * numbers(19, num_inner, dtype=dtype)
    norm = norm_of(num_inner, dtype)
    wide = x.double()
    normed = wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + norm.variance_epsilon) * norm.weight.double()
    expected = F.linear(normed, weight.double())
    # Products of bfloat16 numbers are rounded twice: the input to 2⁻⁹ of it, and the result.
    bound = {torch.float32: 1e-4, torch.bfloat16: 2**-7}[dtype]
    computed = RowProduct(weight, norm=norm)(x)
    torch.testing.assert_close(computed.double(), expected, rtol=bound, atol=bound * float(expected.std()))
    gate, up = expected.chunk(2, 1)
    computed = RowProduct(weight, norm=norm, is_gated=True)(x)
    gated = F.silu(gate) * up
    torch.testing.assert_close(computed.double(), gated, rtol=2 * bound, atol=2 * bound * float(gated.std()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_has_the_same_bits_among_any_number_of_rows(dtype: torch.dtype) -> None:
    num_inner = SIZES[dtype][2][1]
    weight, bias = numbers(36, num_inner, dtype=dtype, seed=1), numbers(36, dtype=dtype, seed=2)
    x, residual = numbers(NUM_ROWS, num_inner, dtype=dtype), numbers(NUM_ROWS, 36, dtype=dtype, seed=3)
    norm = norm_of(num_inner, dtype)
    plain, gated = RowProduct(weight, bias, norm), RowProduct(weight, norm=norm, is_gated=True)
    all_plain, all_gated = plain(x, residual), gated(x)
    for count in COUNTS:
        assert torch.equal(plain(x[:count], residual[:count]), all_plain[:count]), count
        assert torch.equal(gated(x[:count]), all_gated[:count]), count
    for row in ALONE:
        assert torch.equal(plain(x[row : row + 1], residual[row : row + 1]), all_plain[row : row + 1]), row
        assert torch.equal(gated(x[row : row + 1]), all_gated[row : row + 1]), row


def test_quantized_layers_and_other_dtypes_keep_their_own_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_state, "_TP", SimpleNamespace(rank_in_group=0, world_size=1))
    with set_current_vllm_config(VllmConfig()):
        plain, half, other = (
            ReplicatedLinear(48, 24, bias=True, params_dtype=dtype, return_bias=False, disable_tp=True)
            for dtype in (torch.bfloat16, torch.float16, torch.bfloat16)
        )
    other.quant_method = SimpleNamespace()
    assert type(product_of(plain)) is RowProduct
    assert type(product_of(half)) is type(product_of(other)) is StockProduct


def test_product_of_a_layer_equals_that_of_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_state, "_TP", SimpleNamespace(rank_in_group=0, world_size=1))
    with set_current_vllm_config(VllmConfig()):
        layer = ReplicatedLinear(48, 24, bias=True, return_bias=False, disable_tp=True)
    for index, parameter in enumerate(layer.parameters()):
        parameter.data = numbers(*parameter.shape, dtype=torch.float32, seed=index)
    layer.cpu_linear = F.linear
    x, norm = numbers(3, 48, dtype=torch.float32), norm_of(48, torch.float32)
    residual = numbers(3, 24, dtype=torch.float32)
    with torch.inference_mode():
        expected = StockProduct(layer, norm)(x, residual)
        torch.testing.assert_close(product_of(layer, norm)(x, residual), expected, rtol=1e-4, atol=1e-4)
