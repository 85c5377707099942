"""vLLM's C++ norms against its native ones."""

import pytest
import torch
from vllm import ir
from vllm.platforms import current_platform

from stretto.cpu_backend import products

current_platform.import_kernels()


@pytest.mark.parametrize("rows", [1, 7])
def test_norms_of_contiguous_and_strided_rows_match_native(rows):
    random = torch.Generator().manual_seed(0)
    projection, weight = torch.randn(rows, 3 * 64, generator=random), torch.randn(32, generator=random)
    native = ir.ops.rms_norm.impls["native"].impl_fn
    for x in (projection[:, :32].contiguous(), projection[:, 64:128].view(rows, 2, 32), projection[:, 32:64]):
        assert products._fits_norm(x, weight, 1e-6)
        torch.testing.assert_close(
            ir.ops.rms_norm.impls[products.PROVIDER].impl_fn(x, weight, 1e-6), native(x, weight, 1e-6)
        )


def test_fused_add_norm_is_in_place():
    x, residual, weight = torch.randn(5, 32), torch.randn(5, 32), torch.randn(32)
    expected = ir.ops.fused_add_rms_norm.impls["native"].impl_fn(x, residual, weight, 1e-6)
    assert products._fits_add_norm(x, residual, weight, 1e-6)
    got = ir.ops.fused_add_rms_norm.impls[products.PROVIDER].impl_fn(x, residual, weight, 1e-6)
    torch.testing.assert_close(got, expected)
    assert got[1].data_ptr() == residual.data_ptr()


def test_unsupported_norms_fall_back_to_torch():
    x, weight = torch.randn(4, 32), torch.randn(32)
    assert not products._fits_norm(x, None, 1e-6)
    assert not products._fits_norm(x, weight.half(), 1e-6)
    assert not products._fits_norm(x, weight, 1e-6, 16)
    assert not products._fits_add_norm(x.T.contiguous().T, x, weight, 1e-6)
