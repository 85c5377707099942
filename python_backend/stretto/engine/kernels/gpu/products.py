"""GPU operators: embedding sums, float32 products and vLLM's fused operators.

vLLM's default compilation mode disables its fused operators, because torch.compile fuses the native ones. Layers that
are not compiled call the fused operators directly. The native ones take up to fourteen launches for a norm, activation
or rotation.
"""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import nn
from vllm import envs
from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper
from vllm.model_executor.determinism.batch_invariant import linear_batch_invariant
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding


def embed_rows(
    table: torch.Tensor, ids: torch.Tensor, pad_id: int, pad_is_silent: bool, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the sum of each row's stream embeddings, [N, H], computed in float32 and rounded to the table's dtype.

    Args:
        ids: Ids of all streams, [N, S]; not checked.
        pad_is_silent: True if `pad_id` contributes nothing except on stream 0.
    """
    if table.device.type != "cpu":
        return embed_on_device(table, ids, pad_id, pad_is_silent, out)
    embedded = embed_on_host(table, ids, pad_id, pad_is_silent)
    return embedded if out is None else out.copy_(embedded)


def embed_on_host(table: torch.Tensor, ids: torch.Tensor, pad_id: int, pad_is_silent: bool) -> torch.Tensor:
    """Compute `embed_rows` in torch."""
    if table.dtype != torch.float32:
        rows = table[ids].float()
        if pad_is_silent:
            rows[:, 1:].masked_fill_((ids[:, 1:] == pad_id)[..., None], 0.0)
        return rows.sum(1).to(table.dtype)
    if not pad_is_silent or ids.shape[1] == 1:
        return F.embedding_bag(ids, table, mode="sum")
    return F.embedding_bag(ids[:, 1:], table, mode="sum", padding_idx=pad_id).add_(F.embedding(ids[:, 0], table))


def embed_on_device(
    table: torch.Tensor, ids: torch.Tensor, pad_id: int, pad_is_silent: bool, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute `embed_rows` in one launch, one program per row and block of columns."""
    assert table.stride(1) == 1, table.stride()
    num_rows, num_streams = ids.shape
    width = table.shape[1]
    embedded = table.new_empty(num_rows, width) if out is None else out
    assert embedded.is_contiguous(), embedded.stride()
    block = min(triton.next_power_of_2(width), 1024)
    _embed_kernel[num_rows, triton.cdiv(width, block)](
        embedded, table, ids, *ids.stride(), table.stride(0), pad_id, width, num_streams, pad_is_silent, block
    )
    return embedded


@triton.jit
def _embed_kernel(
    embedded: tl.tensor,  # [N, H], written
    table: tl.tensor,  # [V, H]
    ids: tl.tensor,  # [N, S] int32 or int64
    id_row_stride: tl.tensor,
    id_stream_stride: tl.tensor,
    table_stride: tl.tensor,
    pad_id: tl.tensor,
    width: tl.tensor,
    num_streams: tl.constexpr,
    pad_is_silent: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < width
    first = tl.load(ids + row * id_row_stride).to(tl.int64)
    total = tl.load(table + first * table_stride + columns, mask=inside, other=0.0).to(tl.float32)
    for stream in tl.static_range(1, num_streams):
        token = tl.load(ids + row * id_row_stride + stream * id_stream_stride).to(tl.int64)
        counted = width
        if pad_is_silent:
            counted = tl.where(token == pad_id, 0, width)
        total += tl.load(table + token * table_stride + columns, mask=columns < counted, other=0.0).to(tl.float32)
    tl.store(embedded + row * width + columns, total.to(embedded.dtype.element_ty), mask=inside)


ALIGNED = 8
MAX_COPIED = 1 << 16


class Float32Product:
    """Product `x @ weight.T` in float32 with a constant `weight` [N, H]: x [M, H] -> [M, N].

    cuBLAS is fast if the size of the result's rows is a multiple of 16 bytes. A small weight is therefore padded with
    zeros to a multiple of 8 rows, and the result is a view without the padding.

    With VLLM_BATCH_INVARIANT, vLLM's own product computes each row in the same order, whatever the number of rows. It
    is called directly, because torch calls it only before compute capability 9.0.
    """

    def __init__(self, weight: torch.Tensor):
        self.num_columns = len(weight)
        num_missing = -self.num_columns % ALIGNED if self.num_columns <= MAX_COPIED else 0
        self.weight = F.pad(weight, (0, 0, 0, num_missing)) if num_missing else weight
        self._is_mixed = weight.dtype != torch.float32 and not envs.VLLM_BATCH_INVARIANT
        self._linear: Any = linear_batch_invariant if envs.VLLM_BATCH_INVARIANT else F.linear
        if envs.VLLM_BATCH_INVARIANT and self.num_columns <= MAX_COPIED:
            self.weight = self.weight.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x @ weight.T` in float32, [M, N]; the result may be strided."""
        if self._is_mixed:
            product = torch.mm(x, self.weight.t(), out_dtype=torch.float32)
        else:
            product = self._linear(x.to(self.weight.dtype), self.weight).float()
        return product[:, : self.num_columns]


def rms_norm(layer: RMSNorm, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
    """Apply RMSNorm to `x` [..., H].

    With a residual, set residual = x + residual and x = norm(residual) in place, and return both. With
    VLLM_BATCH_INVARIANT, vLLM's own implementation is called.
    """
    if envs.VLLM_BATCH_INVARIANT:
        return layer.forward_cuda(x, residual)
    if residual is not None:
        torch.ops._C.fused_add_rms_norm(x, residual, layer.weight.data, layer.variance_epsilon)
        return x, residual
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.ops._C.rms_norm(normed, x, layer.weight.data, layer.variance_epsilon)
    return normed


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """Return silu(a) * b, [..., H], for the halves a and b of `x` [..., 2 H]."""
    gated = torch.empty((*x.shape[:-1], x.shape[-1] // 2), dtype=x.dtype, device=x.device)
    torch.ops._C.silu_and_mul(gated, x)
    return gated


def fp8_product(layer: nn.Module) -> Any:
    """Return the object by which vLLM computes a linear layer in FP8 and quantizes its input; None if there is none."""
    owners: tuple[Any, ...] = getattr(layer, "quant_method", None), getattr(layer, "scheme", None)
    return next((owner.fp8_linear for owner in owners if hasattr(owner, "fp8_linear")), None)


def uncompiled_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Yield `module` and the modules in it, except those that vLLM compiles and their contents."""
    if isinstance(module, TorchCompileWithNoGuardsWrapper) and not module.do_not_compile:
        return
    yield module
    for child in module.children():
        yield from uncompiled_modules(child)


def fuse_quantization(module: nn.Module) -> None:
    """Make the uncompiled linear layers in `module` that quantize their inputs to FP8 do so in a single kernel."""
    for layer in uncompiled_modules(module):
        quantize = getattr(fp8_product(layer), "quant_fp8", None) if isinstance(layer, LinearBase) else None
        if quantize is not None:
            quantize._forward_method = quantize.forward_cuda


def use_fused_operators(module: nn.Module) -> None:
    """Make norms, activations, rotations and FP8 quantizations in `module` call fused operators.

    Modules that vLLM compiles are unchanged, because torch.compile fuses the native operators there. Rotary embeddings
    are copied first, because vLLM shares them between layers of the same shape, some of which may be compiled.
    """
    fuse_quantization(module)
    for layer in uncompiled_modules(module):
        if isinstance(layer, RMSNorm):
            layer._forward_method = partial(rms_norm, layer)
        elif isinstance(layer, SiluAndMul):
            layer._forward_method = silu_and_mul
        for name, child in layer.named_children():
            if isinstance(child, RotaryEmbedding):
                rotary = copy.copy(child)
                rotary._forward_method = rotary.forward_cuda
                setattr(layer, name, rotary)
