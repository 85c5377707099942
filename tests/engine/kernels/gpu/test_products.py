"""Head products on a GPU are in float32, with as many columns as the head has rows."""

import pytest
import torch
from vllm.model_executor.determinism import batch_invariant as batch_invariant_module

from stretto.engine.kernels.gpu import products
from stretto.engine.kernels.gpu.products import Float32Product
from tests.tiers import by_night


def mm_of_a_gpu(x: torch.Tensor, weight: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
    return x.to(out_dtype) @ weight.to(out_dtype)


@pytest.mark.parametrize("num_rows", [1026, 1032, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_computed_in_float32(num_rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "mm", mm_of_a_gpu)
    weight, x = torch.randn(num_rows, 64).to(dtype), torch.randn(3, 64).to(dtype)
    product = Float32Product(weight)(x)
    assert product.dtype == torch.float32
    # Sums of 64 products, in any order; if products were not in float32, they would differ by 1e-2.
    torch.testing.assert_close(product.double(), x.double() @ weight.double().T, rtol=1e-4, atol=1e-4)


@pytest.fixture
def batch_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Select vLLM's batch-invariant mode, whose kernel runs in Triton's interpreter, as on four multiprocessors."""
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    monkeypatch.setattr(batch_invariant_module, "num_compute_units", lambda device: 4)
    monkeypatch.delattr(torch, "mm")


@pytest.mark.usefixtures("batch_invariant")
@pytest.mark.parametrize("num_rows", [1026, 2000])
def test_batch_invariant_products_use_vllms_product(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "MAX_COPIED", 1500)
    num_products = 0

    def multiply(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        nonlocal num_products
        num_products += 1
        return batch_invariant_module.linear_batch_invariant(x, weight)

    monkeypatch.setattr(products, "linear_batch_invariant", multiply)
    weight, x = torch.randn(num_rows, 64).half(), torch.randn(3, 64).half()
    product = Float32Product(weight)(x)
    assert product.dtype == torch.float32
    exact = x.double() @ weight.double().T
    assert torch.allclose(product.double(), exact, atol=1e-4 if num_rows < 1500 else 0.2)
    assert num_products == 1


@pytest.mark.usefixtures("batch_invariant")
@pytest.mark.parametrize(
    ("num_columns", "dtype"),
    [(2, torch.float32), (1026, torch.bfloat16), *by_night((2, torch.bfloat16), (1026, torch.float32))],
)
def test_row_alone_equals_the_row_in_a_batch(num_columns: int, dtype: torch.dtype) -> None:
    """The product of a head of a stop flag, and of one of stream 0; the batch has more rows than a tile."""
    head, x = Float32Product(torch.randn(num_columns, 160).to(dtype)), torch.randn(130, 160).to(dtype)
    together = head(x)
    torch.testing.assert_close(together, x.float() @ head.weight[:num_columns].T, rtol=1e-5, atol=1e-3)  # sums of 160
    for row in (0, 1, 77, 129):
        assert torch.equal(head(x[row : row + 1])[0], together[row])
    assert torch.equal(head(x[:2]), together[:2])


def test_float32_product_is_supported_on_devices() -> None:
    weight = torch.empty(1026, 64, dtype=torch.bfloat16, device="meta")
    product = Float32Product(weight)(torch.empty(3, 64, dtype=torch.bfloat16, device="meta"))
    assert (product.dtype, product.shape) == (torch.float32, (3, 1026))


def test_small_heads_are_padded_and_large_heads_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(1026, 8)
    assert len(Float32Product(weight).weight) == 1032
    monkeypatch.setattr(products, "MAX_COPIED", 1025)
    assert Float32Product(weight).weight is weight
