import pytest
import torch

from stretto.cpu_backend import products
from stretto.cpu_backend.products import NARROW, Float32Product, Product, pad_products, padded_size


@pytest.mark.parametrize("num_rows", [1, 7, 32])
def test_product_matches_a_linear_layer(num_rows: int) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    table = torch.randn(300, 64, generator=generator)
    weight, x = table[40:250], torch.randn(num_rows, 64, generator=generator)
    torch.testing.assert_close(Product(weight)(x).double(), x.double() @ weight.double().T, rtol=0, atol=2e-4)


@pytest.mark.parametrize("num_rows", [1, 7, 32])
def test_bfloat16_product_matches_a_linear_layer(num_rows: int) -> None:
    """All sums are integers of up to 64, which bfloat16 represents exactly, so that nothing is rounded."""
    generator = torch.Generator().manual_seed(num_rows)
    table = torch.randint(-1, 2, (300, 64), generator=generator).bfloat16()
    weight, x = table[40:250], torch.randint(-1, 2, (num_rows, 64), generator=generator).bfloat16()
    assert torch.equal(Product(weight)(x).double(), x.double() @ weight.double().T)


def test_unsupported_onednn_products_fall_back_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("could not create a primitive descriptor for the matmul primitive")

    monkeypatch.setattr(products.ops, "create_onednn_mm", refuse)
    weight, x = torch.randn(210, 64).bfloat16(), torch.randn(5, 64).bfloat16()
    assert torch.equal(Product(weight)(x), torch.nn.functional.linear(x, weight))


def test_float32_product_is_not_rounded_to_bfloat16() -> None:
    weight, x = torch.randn(210, 64).bfloat16(), torch.randn(5, 64).bfloat16()
    product = Float32Product(weight)(x)
    assert product.dtype == torch.float32
    torch.testing.assert_close(product.double(), x.double() @ weight.double().T, rtol=0, atol=1e-4)


@pytest.mark.parametrize("width", [256, 1024, 1536, 2048, 4096])
def test_row_product_is_batch_invariant(width: int) -> None:
    """Results are bit-identical, also at published widths.

    With AVX-512, oneDNN sums a single row in another order from width 1536; without AVX2, also at smaller widths.
    """
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(rows, width, generator=generator) for rows in (320, 32))
    multiply = Product(weight)
    whole = multiply(x)
    for num_rows in (1, 2, 3, 5, 16, 31):
        assert torch.equal(multiply(x[:num_rows]), whole[:num_rows]), num_rows
    for row in range(8):
        assert torch.equal(multiply(x[row : row + 1]), whole[row : row + 1]), row


@pytest.mark.parametrize("is_traced", [False, True])
def test_products_are_padded_to_few_sizes_without_losing_rows(is_traced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "narrow_width", lambda: NARROW)
    layer, met = torch.nn.Linear(4, 3, bias=False), set[int]()

    def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        met.add(len(x))
        return torch.nn.functional.linear(x, weight, bias)

    layer.cpu_linear = multiply  # as vLLM marks its own
    pad_products(torch.nn.Sequential(layer, torch.nn.Linear(4, 3)), is_traced)
    x = torch.randn(2048, 4)
    for num_rows in range(2049):
        assert torch.allclose(layer.cpu_linear(x[:num_rows], layer.weight, None), layer(x[:num_rows]), atol=1e-5)
    assert len(met) == 73
    assert all(padded_size(size) == size for size in met)
    assert all(size <= padded_size(size) < 1.125 * size for size in range(1, 2049))


@pytest.mark.parametrize(
    ("narrow", "width", "num_rows"), [(NARROW, 1024, 1), (NARROW, 1025, 2), (NARROW, 8192, 2), (0, 8, 2)]
)
def test_wide_single_row_product_is_padded_to_two_rows(
    narrow: int, width: int, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "narrow_width", lambda: narrow)
    met, multiply = list[int](), products.onednn_mm
    monkeypatch.setattr(products, "onednn_mm", lambda out, x, *more: met.append(len(x)) or multiply(out, x, *more))
    weight, x = torch.randn(64, width), torch.randn(1, width)
    torch.testing.assert_close(Product(weight)(x), x @ weight.T, rtol=1e-4, atol=3e-3)
    assert met == [num_rows]


@pytest.mark.parametrize(("single_row_error", "width"), [(0, NARROW), (1, 0)])
def test_no_width_is_narrow_if_a_single_row_has_other_bits(
    single_row_error: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without AVX2, oneDNN sums a single row in another order."""

    def multiply(rows: torch.Tensor) -> torch.Tensor:
        return rows.floor() + single_row_error * (len(rows) == 1)

    monkeypatch.setattr(products, "PreparedProduct", lambda _: multiply)
    assert products.narrow_width.__wrapped__() == width
