"""Float32 linear layers on a GPU whose sums do not depend on the number of rows, as a custom operator.

vLLM's batch-invariant product computes tiles of 128 rows, however few there are. Here, up to `MAX_FEW_ROWS` rows are
computed in tiles of 16. Both kernels add in the same order: first within each of eight parts of the columns of `x`,
then over the parts. `few_rows_kernel` computes all parts at once, because there are few tiles.
"""

import torch
import triton
import triton.language as tl
from torch import nn
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

LIBRARY = torch.library.Library("stretto", "FRAGMENT")  # opaque to torch.compile, because a kernel is chosen by rows
LIBRARY.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
NUM_PARTS: tl.constexpr = tl.constexpr(8)  # `few_rows_kernel` is written for eight
# columns of `x` in a tile; a part is a multiple of the larger number
FEW_INNER = 32
MANY_INNER = 16
MAX_FEW_ROWS = 128
FEW_ROWS = 16
MANY_ROWS = 64
MIN_WIDE_TILES = 128  # tiles of 32 columns, so that there is one for almost every multiprocessor


def linear_on_device(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return `x @ weight.T + bias` in float32, [M, N], in one launch; a row does not depend on the other rows.

    Args:
        x: Rows, [M, K], with consecutive columns.
        weight: Weight [N, K], whose transpose is contiguous.
    """
    num_rows, num_inner = x.shape
    num_columns = len(weight)
    assert x.dtype == weight.dtype == torch.float32, (x.dtype, weight.dtype)
    assert x.stride(1) == 1, x.stride()
    assert weight.stride() == (1, num_columns), weight.stride()
    out = x.new_empty(num_rows, num_columns)
    chunk = triton.cdiv(num_inner, NUM_PARTS.value * FEW_INNER) * FEW_INNER
    sizes = num_rows, x.stride(0), num_columns, num_inner, chunk
    if num_rows > MAX_FEW_ROWS:
        grid = triton.cdiv(num_columns, MANY_ROWS), triton.cdiv(num_rows, MANY_ROWS)
        many_rows_kernel[grid](
            out, x, weight, bias, *sizes, MANY_ROWS, MANY_ROWS, MANY_INNER, num_warps=8, enable_fp_fusion=True
        )  # fmt: skip
        return out
    block = 32 if triton.cdiv(num_columns, 32) >= MIN_WIDE_TILES else 16
    grid = triton.cdiv(num_columns, block), triton.cdiv(num_rows, FEW_ROWS)
    few_rows_kernel[grid](
        out, x, weight, bias, *sizes, FEW_ROWS, block, FEW_INNER, num_warps=block // 4, enable_fp_fusion=True
    )  # fmt: skip
    return out


def _shaped(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(len(x), len(weight))


LIBRARY.impl("linear", linear_on_device, "CUDA")
LIBRARY.impl("linear", _shaped, "Meta")


class RowInvariantLinear(UnquantizedLinearMethod):
    """Replacement for vLLM's method of linear layers in float32."""

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return the output [..., N] of `layer` for x [..., K]."""
        rows = x.reshape(-1, x.shape[-1])
        out: torch.Tensor = torch.ops.stretto.linear(rows, layer.weight, bias)
        return out.view(*x.shape[:-1], out.shape[1])


@torch.inference_mode(False)  # compiled graphs have no inference tensors as weights
def use_row_invariant_products(model: nn.Module) -> None:
    """Replace the products of all unquantized float32 linear layers in `model`, and store their weights transposed."""
    method = RowInvariantLinear()
    for layer in model.modules():
        if isinstance(layer, LinearBase) and type(layer.quant_method) is UnquantizedLinearMethod:
            weight = layer.get_parameter("weight")
            if weight.dtype == torch.float32:
                weight.data = weight.data.t().contiguous().t()
                layer.quant_method = method


@triton.jit
def halves(
    parts: tl.tensor, half: tl.constexpr, block_rows: tl.constexpr, block_columns: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Split 2 * `half` parts into two halves, [half, block_rows, block_columns] each."""
    return tl.split(tl.permute(tl.reshape(parts, (2, half, block_rows, block_columns)), (1, 2, 3, 0)))


@triton.jit
def _store(
    out: tl.tensor,
    total: tl.tensor,
    bias: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
) -> None:
    inside = columns < num_columns
    if bias is not None:
        total += tl.load(bias + columns, mask=inside, other=0.0)[None, :]
    tl.store(out + rows[:, None] * num_columns + columns[None, :], total, mask=(rows < num_rows)[:, None] & inside)


@triton.jit(do_not_specialize=["num_rows"])
def few_rows_kernel(
    out: tl.tensor,  # [M, N], written
    x: tl.tensor,  # [M, K], with row stride `x_stride`
    weight: tl.tensor,  # [K, N]
    bias: tl.tensor,  # [N], or None
    num_rows: tl.tensor,  # M
    x_stride: tl.tensor,
    num_columns: tl.tensor,  # N
    num_inner: tl.tensor,  # K
    chunk: tl.tensor,  # columns of `x` in a part
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_inner: tl.constexpr,
) -> None:
    rows = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    columns = tl.program_id(0) * block_columns + tl.arange(0, block_columns)
    is_row = (rows < num_rows)[None, :, None]
    is_column = (columns < num_columns)[None, None, :]
    of_rows = x + rows[None, :, None] * x_stride
    of_columns = weight + columns[None, None, :]
    inner = (tl.arange(0, NUM_PARTS) * chunk)[:, None] + tl.arange(0, block_inner)[None, :]
    parts = tl.zeros((NUM_PARTS, block_rows, block_columns), tl.float32)
    for first in range(0, chunk, block_inner):
        inner_columns = first + inner
        inside = inner_columns < num_inner
        left = tl.load(of_rows + inner_columns[:, None, :], mask=is_row & inside[:, None, :], other=0.0)
        right = tl.load(
            of_columns + inner_columns[:, :, None] * num_columns, mask=is_column & inside[:, :, None], other=0.0
        )  # fmt: skip
        parts = tl.dot(left, right, parts, input_precision="ieee")
    low, high = halves(parts, 4, block_rows, block_columns)
    parts_01, parts_23 = halves(low, 2, block_rows, block_columns)
    parts_45, parts_67 = halves(high, 2, block_rows, block_columns)
    part_0, part_1 = halves(parts_01, 1, block_rows, block_columns)
    part_2, part_3 = halves(parts_23, 1, block_rows, block_columns)
    part_4, part_5 = halves(parts_45, 1, block_rows, block_columns)
    part_6, part_7 = halves(parts_67, 1, block_rows, block_columns)
    total = part_0 + part_1 + part_2 + part_3 + part_4 + part_5 + part_6 + part_7
    total = tl.reshape(total, (block_rows, block_columns))
    _store(out, total, bias, rows, columns, num_rows, num_columns)


@triton.jit(do_not_specialize=["num_rows"])
def many_rows_kernel(
    out: tl.tensor,  # the arguments are those of `few_rows_kernel`
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    num_rows: tl.tensor,
    x_stride: tl.tensor,
    num_columns: tl.tensor,
    num_inner: tl.tensor,
    chunk: tl.tensor,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_inner: tl.constexpr,
) -> None:
    rows = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    columns = tl.program_id(0) * block_columns + tl.arange(0, block_columns)
    of_rows = x + rows[:, None] * x_stride
    of_columns = weight + columns[None, :]
    is_row = (rows < num_rows)[:, None]
    is_column = (columns < num_columns)[None, :]
    total = tl.zeros((block_rows, block_columns), tl.float32)
    for part_number in range(NUM_PARTS):
        summed = tl.zeros((block_rows, block_columns), tl.float32)
        for first in range(0, chunk, block_inner):
            inner_columns = part_number * chunk + first + tl.arange(0, block_inner)
            inside = inner_columns < num_inner
            left = tl.load(of_rows + inner_columns[None, :], mask=is_row & inside[None, :], other=0.0)
            right = tl.load(
                of_columns + inner_columns[:, None] * num_columns, mask=is_column & inside[:, None], other=0.0
            )
            summed = tl.dot(left, right, summed, input_precision="ieee")
        total += summed
    _store(out, total, bias, rows, columns, num_rows, num_columns)
