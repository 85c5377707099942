"""Direct calls of vLLM's fused CUDA operators, for layers that run outside torch.compile.

vLLM's default compilation mode disables these operators and relies on torch.compile to fuse the native ones. In layers
that are not compiled, each norm, activation and rotation would then take up to fourteen kernel launches.
"""

import copy
from functools import partial
from typing import Any

import torch
from torch import nn
from vllm import envs
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding


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
    """Return vLLM's FP8 product of a linear layer, which also quantizes the input, or None if the layer has none."""
    owners: tuple[Any, ...] = getattr(layer, "quant_method", None), getattr(layer, "scheme", None)
    return next((owner.fp8_linear for owner in owners if hasattr(owner, "fp8_linear")), None)


def fuse_quantization(module: nn.Module) -> None:
    """Make all linear layers in `module` that quantize their inputs to FP8 do so in one kernel."""
    for layer in module.modules():
        quantize = getattr(fp8_product(layer), "quant_fp8", None) if isinstance(layer, LinearBase) else None
        if quantize is not None:
            quantize._forward_method = quantize.forward_cuda


def use_fused_operators(module: nn.Module) -> None:
    """Make all norms, activations, rotary embeddings and FP8 quantizations in `module` call the fused operators.

    Rotary embeddings are copied first, because vLLM shares them between layers of equal shape, some of which may be
    compiled.
    """
    fuse_quantization(module)
    for layer in module.modules():
        if isinstance(layer, RMSNorm):
            layer._forward_method = partial(rms_norm, layer)
        elif isinstance(layer, SiluAndMul):
            layer._forward_method = silu_and_mul
        for name, child in layer.named_children():
            if isinstance(child, RotaryEmbedding):
                own = copy.copy(child)
                own._forward_method = own.forward_cuda
                setattr(layer, name, own)
