"""Matrix products of few rows on a GPU, whose bits for a row do not depend on the number of rows.

One kernel, in one launch, can also normalise the rows before the product, and apply SiLU or add a bias and a residual
after it. The weight is the left operand of the tensor cores, which have at least 16 rows there. A tile of 16 rows of
`x` is the right one. The order of each sum is always the same: the inner dimension is in eight parts, one for each
warp, whose sums are added in pairs.

With `launch_pdl`, a kernel begins while the previous one ends (programmatic dependent launch). It loads its first
weights, which no kernel writes, before it waits for the previous kernel.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.platforms import current_platform

from stretto.engine.kernels.gpu.linear import halves
from stretto.engine.kernels.gpu.products import rms_norm, silu_and_mul

NUM_PARTS: tl.constexpr = tl.constexpr(8)  # `_sum_of_parts` is written for eight
BLOCK_ROWS = 16
BLOCK_OUTPUTS = 16
MAX_TILES = 4  # tiles of rows that a program computes with the weights that it has loaded
BLOCK_INNER = {torch.bfloat16: 128, torch.float32: 16}  # without tensor cores, more would not fit the registers


def launches_early() -> bool:
    """Return True if a kernel can begin while the previous one ends, which needs compute capability 9.0."""
    return current_platform.has_device_capability(90)


def num_stages(block_inner: int, is_gated: bool) -> int:
    """Return how many steps ahead a program loads blocks of weights.

    Shared memory has room for two blocks, and a gated product loads two in each step. In float32, without tensor cores,
    two steps would need more registers than there are.
    """
    return 1 if is_gated or block_inner == BLOCK_INNER[torch.float32] else 2


class RowProduct:
    """Product `x @ weight.T` in one launch: x [M, K] -> [M, N].

    Args:
        weight: Weight, [N, K] or, if the product is gated, [2 N, K]; in bfloat16 or float32, like all tensors.
        is_gated: True if the result is silu(a) * b, for the halves a and b of the product.
        dtype: Dtype of the result; None for that of the weight.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        norm: RMSNorm | None = None,
        is_gated: bool = False,
        dtype: torch.dtype | None = None,
    ):
        num_outputs, num_inner = weight.shape
        self._num_outputs = num_outputs // 2 if is_gated else num_outputs
        self._weights = weight.contiguous(), None if norm is None else norm.weight.data, bias
        self._dtype = dtype or weight.dtype
        eps = 0.0 if norm is None else norm.variance_epsilon
        block_inner = BLOCK_INNER[weight.dtype]
        self._constants = (
            eps, self._num_outputs, num_inner, is_gated, launches_early(),
            BLOCK_OUTPUTS, BLOCK_ROWS, block_inner, MAX_TILES,
        )  # fmt: skip
        stages = num_stages(block_inner, is_gated)
        self._options = {"num_warps": NUM_PARTS.value, "num_stages": stages, "enable_fp_fusion": True}
        if launches_early():
            self._options["launch_pdl"] = True

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Return the result for `x` [M, K], plus the residual [M, N] if there is one."""
        x = x.contiguous()
        out = x.new_empty(len(x), self._num_outputs, dtype=self._dtype)
        grid = triton.cdiv(self._num_outputs, BLOCK_OUTPUTS), triton.cdiv(len(x), MAX_TILES * BLOCK_ROWS)
        row_product_kernel[grid](out, x, *self._weights, residual, len(x), *self._constants, **self._options)
        return out


class StockProduct:
    """Equivalent of `RowProduct` in several launches, for a linear layer of vLLM that may be quantized."""

    def __init__(self, layer: Any, norm: RMSNorm | None = None, is_gated: bool = False):
        self._layer = layer
        self._norm = norm
        self._is_gated = is_gated

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        product: torch.Tensor = self._layer(x if self._norm is None else rms_norm(self._norm, x))
        if self._is_gated:
            product = silu_and_mul(product)
        return product if residual is None else product + residual


def product_of(layer: Any, norm: RMSNorm | None = None, is_gated: bool = False) -> RowProduct | StockProduct:
    """Return the product of a linear layer: `RowProduct` for a plain weight in a dtype that it supports."""
    method = getattr(layer, "quant_method", None)  # None for a layer with adapters
    if type(method) is UnquantizedLinearMethod and layer.weight.dtype in BLOCK_INNER:
        bias = None if layer.bias is None else layer.bias.data
        return RowProduct(layer.weight.data, bias, norm, is_gated)
    return StockProduct(layer, norm, is_gated)


@triton.jit
def _load_weights(
    weight: tl.tensor, outputs: tl.tensor, inner: tl.tensor, num_outputs: tl.constexpr, num_inner: tl.constexpr
) -> tl.tensor:
    """Return a tile of a weight [N, K], [parts, outputs, inner]."""
    inside = (outputs < num_outputs)[None, :, None] & (inner < num_inner)[:, None, :]
    return tl.load(weight + outputs[None, :, None] * num_inner + inner[:, None, :], mask=inside, other=0.0)


@triton.jit
def _sum_of_parts(parts: tl.tensor, size: tl.constexpr, block_rows: tl.constexpr) -> tl.tensor:
    """Return the sum of [parts, size, rows] over the parts, [size, rows], which are added in pairs."""
    low, high = halves(parts, 4, size, block_rows)
    low, high = halves(low + high, 2, size, block_rows)
    low, high = halves(low + high, 1, size, block_rows)
    return tl.reshape(low + high, (size, block_rows))


@triton.jit
def _load_rows(
    x: tl.tensor, norm: tl.tensor, rows: tl.tensor, is_row: tl.tensor, inner: tl.tensor, squares: tl.tensor,
    num_inner: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Load a tile of `x` [M, K] as [parts, inner, rows], and add the sums of its squares to `squares` [parts, 1, rows].

    With a norm, the tile is multiplied by the norm's weight; the product is scaled at the end.
    """
    is_inner = inner < num_inner
    inside = is_row[None, None, :] & is_inner[:, :, None]
    tile = tl.load(x + rows[None, None, :] * num_inner + inner[:, :, None], mask=inside, other=0.0)
    if norm is not None:
        wide = tile.to(tl.float32)
        squares += tl.sum(wide * wide, 1, keep_dims=True)
        scales = tl.load(norm + inner, mask=is_inner, other=0.0).to(tl.float32)
        tile = (wide * scales[:, :, None]).to(tile.dtype)
    return tile, squares


@triton.jit(do_not_specialize=["num_rows"])
def row_product_kernel(
    out: tl.tensor,  # [M, N], written
    x: tl.tensor,  # [M, K]
    weight: tl.tensor,  # [N, K], or [2 N, K] if the product is gated
    norm: tl.tensor,  # weight of RMSNorm, [K], or None
    bias: tl.tensor,  # [N], or None
    residual: tl.tensor,  # [M, N], which is added, or None
    num_rows: tl.tensor,  # M
    eps: tl.constexpr,
    num_outputs: tl.constexpr,  # N
    num_inner: tl.constexpr,  # K
    gated: tl.constexpr,  # True if the outputs are silu(a) * b, for the halves a and b of the product
    is_dependent: tl.constexpr,  # True with `launch_pdl`
    block_outputs: tl.constexpr,
    block_rows: tl.constexpr,
    block_inner: tl.constexpr,
    max_tiles: tl.constexpr,
) -> None:
    chunk: tl.constexpr = (num_inner + NUM_PARTS * block_inner - 1) // (NUM_PARTS * block_inner) * block_inner
    outputs = tl.program_id(0) * block_outputs + tl.arange(0, block_outputs)
    inner = (tl.arange(0, NUM_PARTS) * chunk)[:, None] + tl.arange(0, block_inner)[None, :]
    first_left = _load_weights(weight, outputs, inner, num_outputs, num_inner)
    upper = weight + num_outputs * num_inner
    first_upper = first_left
    if gated:
        first_upper = _load_weights(upper, outputs, inner, num_outputs, num_inner)
    if is_dependent:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    first_tile = tl.program_id(1) * max_tiles
    last_tile = tl.minimum(first_tile + max_tiles, tl.cdiv(num_rows, block_rows))
    for tile in tl.range(first_tile, last_tile, num_stages=1):
        rows = tile * block_rows + tl.arange(0, block_rows)
        is_row = rows < num_rows
        total = tl.zeros((NUM_PARTS, block_outputs, block_rows), tl.float32)
        total_upper = total
        squares = tl.zeros((NUM_PARTS, 1, block_rows), tl.float32)
        right, squares = _load_rows(x, norm, rows, is_row, inner, squares, num_inner)
        total = tl.dot(first_left, right, total, input_precision="ieee")
        if gated:
            total_upper = tl.dot(first_upper, right, total_upper, input_precision="ieee")
        for step in tl.range(1, chunk // block_inner):
            block = step * block_inner + inner
            right, squares = _load_rows(x, norm, rows, is_row, block, squares, num_inner)
            left = _load_weights(weight, outputs, block, num_outputs, num_inner)
            total = tl.dot(left, right, total, input_precision="ieee")
            if gated:
                left = _load_weights(upper, outputs, block, num_outputs, num_inner)
                total_upper = tl.dot(left, right, total_upper, input_precision="ieee")
        product = _sum_of_parts(total, block_outputs, block_rows)
        scale = tl.full((1, block_rows), 1.0, tl.float32)
        if norm is not None:
            scale = tl.rsqrt(_sum_of_parts(squares, 1, block_rows) / num_inner + eps)
        product *= scale
        if gated:
            product = product * tl.sigmoid(product) * (_sum_of_parts(total_upper, block_outputs, block_rows) * scale)
        if bias is not None:
            product += tl.load(bias + outputs, mask=outputs < num_outputs, other=0.0).to(tl.float32)[:, None]
        target = rows[None, :] * num_outputs + outputs[:, None]
        inside = is_row[None, :] & (outputs < num_outputs)[:, None]
        if residual is not None:
            product += tl.load(residual + target, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + target, product.to(out.dtype.element_ty), mask=inside)
