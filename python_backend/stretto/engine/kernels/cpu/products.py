"""CPU products with constant weights (oneDNN) and RMS norms (vLLM's C++ kernels)."""

from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import nn
from vllm import _custom_ops as ops
from vllm import ir

PROVIDER = "cpu_c"
# For `EngineArgs.kernel_config`: vLLM uses the first supported entry.
IR_OP_PRIORITY = {"rms_norm": [PROVIDER, "native"], "fused_add_rms_norm": [PROVIDER, "native"]}


def _fits_norm(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    return variance_size is None and weight is not None and weight.dtype == x.dtype


def _fits_add_norm(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> bool:
    return _fits_norm(x, weight, epsilon, variance_size) and x.is_contiguous() and x_residual.is_contiguous()


@ir.ops.rms_norm.register_impl(PROVIDER, supports_args=_fits_norm)
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> torch.Tensor:
    """Return `x` [..., H] divided by its root mean square, times `weight` [H]."""
    x = x.contiguous()  # heads of one projection are strided, but the C++ kernel needs contiguous rows
    normed = torch.empty_like(x)
    torch.ops._C.rms_norm(normed, x, weight, epsilon)
    return normed


@ir.ops.fused_add_rms_norm.register_impl(PROVIDER, supports_args=_fits_add_norm, inplace=True)
def fused_add_rms_norm(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write the norm of the sum, and the sum, over `x` and `x_residual` [N, H], and return them."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


MAX_PREPARED = 128  # how many numbers of rows keep what has been prepared for them; vLLM's own default
SIZES_PER_OCTAVE = 8  # 1 ... 16, 18, 20 ... 32, 36 ...: 72 up to 2048, with 4 % more rows on average
NARROW, MIN_WIDE_ROWS = 1024, 2  # the greatest width at which one row is multiplied as many are; rows beyond it


@cache  # asked for by every layer in every step
def padded_size(num_rows: int) -> int:
    """Return the smallest size that has room for `num_rows` rows."""
    step = max(1, (1 << num_rows.bit_length()) // (2 * SIZES_PER_OCTAVE))
    return -(-num_rows // step) * step


class Product:
    """`x @ weight.T` for a `weight` [N, H] that stays as it is: x [M, H] -> [M, N]."""

    def __init__(self, weight: torch.Tensor):
        self.num_columns = len(weight)
        self._multiply = partial(F.linear, weight=weight)
        if ops._supports_onednn:
            with suppress(RuntimeError):  # it has no products of bfloat16 where the processor has none (AVX2)
                prepared = ops.create_onednn_mm(weight.t(), MAX_PREPARED)
                self._multiply = partial(_multiply_padded, partial(ops.onednn_mm, prepared, bias=None))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product."""
        return self._multiply(x)


class Float32Product(Product):
    """A product in float32 whatever the weight's type: of half a weight's precision, a copy of twice its size."""

    def __init__(self, weight: torch.Tensor):
        super().__init__(weight.float())

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product."""
        return self._multiply(x.float())


def pad_products(model: nn.Module, is_traced: bool) -> None:
    """Let vLLM's own linear layers multiply few numbers of rows, too; without effect on layers that are not its.

    is_traced: whether the model may be traced to a graph.
    """
    padded = _multiply_unless_traced if is_traced else _multiply_padded
    for layer in model.modules():
        chosen = vars(layer)
        if "cpu_linear" in chosen:  # what vLLM multiplies with, on the CPU
            chosen["cpu_linear"] = partial(padded, chosen["cpu_linear"])


def _multiply_padded(multiply: Callable[..., torch.Tensor], x: torch.Tensor, *weight_and_bias: object) -> torch.Tensor:
    """`multiply(x, ...)` [M, N] for x [M, H], by way of a size of which there are few."""
    num_rows = x.shape[0]  # not `len(x)`, which is Python's: small steps are made of such calls
    size = padded_size(num_rows)
    if num_rows == 1 and x.shape[-1] > NARROW and x.dim() == 2:
        size = MIN_WIDE_ROWS
    if size == num_rows:
        return multiply(x, *weight_and_bias)
    return multiply(F.pad(x, (0, 0, 0, size - num_rows)), *weight_and_bias)[:num_rows]


def _multiply_unless_traced(
    multiply: Callable[..., torch.Tensor], x: torch.Tensor, *weight_and_bias: object
) -> torch.Tensor:
    """`_multiply_padded`, but for a graph: it is for any number of rows and asks for no particular one."""
    if torch.compiler.is_compiling():
        return multiply(x, *weight_and_bias)
    return _multiply_padded(multiply, x, *weight_and_bias)
