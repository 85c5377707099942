"""Operators of codecs on a GPU: their schemas, the shapes of their results, and where their kernels are.

The schemas need no Triton, so a host without a GPU can measure a codec's memory on torch's device `meta`. All signals
are rows of channels, float32 [B, n, C], contiguous.
"""

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from stretto.codecs.kernels.sizes import GATE, IEEE, Sizes

LIBRARY = torch.library.Library("stretto", "FRAGMENT")
STATE = "Tensor? before, Tensor(a!)? after, Tensor? first, Tensor? rows"
RESULT = "str activation, Tensor? one, Tensor? other, bool keeps_sums"
LIBRARY.define(
    f"product(Tensor x, Tensor weight, Tensor? bias, {STATE}, int[] sizes, Tensor? norm_weight, Tensor? norm_bias,"
    f" float eps, Tensor? gain, Tensor? residual, {RESULT}, str precision) -> (Tensor, Tensor)"
)
LIBRARY.define(f"depthwise(Tensor x, Tensor? weight, Tensor? bias, {STATE}, int[] sizes, {RESULT}) -> (Tensor, Tensor)")
LIBRARY.define(
    "attend(Tensor x, Tensor before, Tensor(a!) after, Tensor first, Tensor? rows, int num_before, int num_heads,"
    " int num_kv_heads) -> Tensor"
)
LIBRARY.define("rotation(Tensor first, Tensor frequencies, int num_steps) -> (Tensor, Tensor)")
LIBRARY.define(
    "sum_entries(Tensor codes, Tensor entries, int num_first, int num_others, int last_code, float scale) -> Tensor"
)
DEVICES = {"cuda", "meta"}  # types of devices whose signals kernels process; `meta` stands for a GPU
# Precision of the convolutions that the calling thread launches: IEEE, or a value of `DecoderConfig.CONVOLUTIONS`.
PRECISION: ContextVar[str] = ContextVar("PRECISION", default=IEEE)


def runs_kernels(x: Tensor) -> bool:
    """Return True if kernels process x: a float32 signal on a GPU or on `meta`, without gradients."""
    return x.device.type in DEVICES and x.dtype == torch.float32 and not torch.is_grad_enabled()


def memory_for(x: Tensor, num_outputs: int, sizes: Sizes, activation: str, keeps_sums: bool) -> tuple[Tensor, Tensor]:
    """Return memory for the sums of a launch and for their activations; a result that is not needed has shape [0]."""
    width = num_outputs // 2 if activation == GATE else num_outputs
    sums = x.new_empty(len(x), sizes.length, num_outputs) if keeps_sums else x.new_empty(0)
    return sums, x.new_empty(len(x), sizes.length, width) if activation else x.new_empty(0)


def product_shapes(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    before: Tensor | None,
    after: Tensor | None,
    first: Tensor | None,
    rows: Tensor | None,
    sizes: list[int],
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    gain: Tensor | None,
    residual: Tensor | None,
    activation: str,
    one: Tensor | None,
    other: Tensor | None,
    keeps_sums: bool,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Return memory for the results of `stretto::product`."""
    shape = Sizes._make(sizes)
    return memory_for(x, weight.shape[1] // shape.rate, shape, activation, keeps_sums)


def _multiply(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    from stretto.codecs.kernels.product import multiply_on_device  # needs Triton

    results = product_shapes(x, *others)
    multiply_on_device(*results, x, *others)
    return results


def depthwise_shapes(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    before: Tensor | None,
    after: Tensor | None,
    first: Tensor | None,
    rows: Tensor | None,
    sizes: list[int],
    activation: str,
    one: Tensor | None,
    other: Tensor | None,
    keeps_sums: bool,
) -> tuple[Tensor, Tensor]:
    """Return memory for the results of `stretto::depthwise`."""
    return memory_for(x, x.shape[2], Sizes._make(sizes), activation, keeps_sums)


def _filter(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    from stretto.codecs.kernels.depthwise import filter_on_device  # needs Triton

    results = depthwise_shapes(x, *others)
    filter_on_device(*results, x, *others)
    return results


def attention_shape(
    x: Tensor,
    before: Tensor,
    after: Tensor,
    first: Tensor,
    rows: Tensor | None,
    num_before: int,
    num_heads: int,
    num_kv_heads: int,
) -> Tensor:
    """Return memory for the result of `stretto::attend`."""
    head_dim = x.shape[2] // (num_heads + 2 * num_kv_heads)
    return x.new_empty(*x.shape[:2], num_heads * head_dim)


def _attend(x: Tensor, *others: Any) -> Tensor:
    from stretto.codecs.kernels.attention import attend_on_device  # needs Triton

    out = attention_shape(x, *others)
    attend_on_device(out, x, *others)
    return out


def rotation_shapes(first: Tensor, frequencies: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """Return memory for the results of `stretto::rotation`."""
    shape = len(first), num_steps, len(frequencies)
    return frequencies.new_empty(shape), frequencies.new_empty(shape)


def _rotate(first: Tensor, frequencies: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    from stretto.codecs.kernels.attention import rotate_on_device  # needs Triton

    results = rotation_shapes(first, frequencies, num_steps)
    rotate_on_device(*results, first, frequencies)
    return results


def sum_shape(codes: Tensor, entries: Tensor, num_first: int, num_others: int, last_code: int, scale: float) -> Tensor:
    """Return memory for the result of `stretto::sum_entries`."""
    num_batch, num_books, num_steps = codes.shape
    num_groups = 1 + (num_books - num_first) // num_others
    return entries.new_empty(num_batch, num_steps, num_groups * entries.shape[2])


def _sum(codes: Tensor, *others: Any) -> Tensor:
    from stretto.codecs.kernels.codebooks import sum_on_device  # needs Triton

    out = sum_shape(codes, *others)
    sum_on_device(out, codes, *others)
    return out


KERNELS = {
    "product": _multiply,
    "depthwise": _filter,
    "attend": _attend,
    "rotation": _rotate,
    "sum_entries": _sum,
}
SHAPES = {
    "product": product_shapes,
    "depthwise": depthwise_shapes,
    "attend": attention_shape,
    "rotation": rotation_shapes,
    "sum_entries": sum_shape,
}
for name in KERNELS:
    LIBRARY.impl(name, SHAPES[name], "Meta")
    LIBRARY.impl(name, KERNELS[name], "CUDA")
