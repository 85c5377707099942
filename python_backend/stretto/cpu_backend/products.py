"""CPU versions of products with constant weights (oneDNN), RMS norms, activations, and the backbone's layers."""

from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from inspect import getclosurevars, isfunction
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from vllm import (
    _custom_ops,  # noqa: F401  (loads vLLM's C++)
    ir,
)
from vllm import _custom_ops as ops
from vllm.config import CompilationMode, VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.llama import LlamaDecoderLayer
from vllm.model_executor.models.qwen2 import Qwen2DecoderLayer
from vllm.model_executor.models.qwen3 import Qwen3DecoderLayer
from vllm.v1.attention.backend import AttentionType

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
    """Return RMSNorm of `x` [..., H] with `weight` [H]."""
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
    """Set `x_residual` [N, H] to the sum and `x` [N, H] to the sum's RMSNorm, in place, and return both."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


MAX_PREPARED = 128  # number of batch sizes for which prepared products are cached; vLLM's default
SIZES_PER_OCTAVE = 8  # 1 ... 16, 18, 20 ... 32, 36 ...: 72 up to 2048, with 4 % more rows on average
# Largest width at which oneDNN sums a single row as in a batch, with AVX2 or later; minimum number of rows otherwise.
NARROW = 1024
MIN_WIDE_ROWS = 2
NUM_PROBED = 8  # rows


onednn_mm: Any = torch.ops._C.onednn_mm.default if ops._supports_onednn else None


@cache  # called by every layer in every step
def padded_size(num_rows: int) -> int:
    """Return the smallest padded batch size that is at least `num_rows`."""
    step = max(1, (1 << num_rows.bit_length()) // (2 * SIZES_PER_OCTAVE))
    return -(-num_rows // step) * step


@cache
def narrow_width() -> int:
    """Return the largest width at which a single row is bit-identical to a row in a batch, or 0 if there is none.

    A test product determines it. With older instruction sets than AVX2, oneDNN sums a single row in another order at
    many widths, which depend on the number of threads. `ONEDNN_MAX_CPU_ISA` selects such a set on any processor.
    """
    if not ops._supports_onednn:
        return NARROW
    generator = torch.Generator().manual_seed(0)
    weight, rows = (torch.randn(number, NARROW, generator=generator) for number in (64, NUM_PROBED))
    multiply = PreparedProduct(ops.create_onednn_mm(weight.t(), MAX_PREPARED))
    return NARROW if torch.cat([multiply(row) for row in rows.split(1)]).equal(multiply(rows)) else 0


class Product:
    """Product `x @ weight.T` with a constant `weight` [N, H]: x [M, H] -> [M, N]."""

    def __init__(self, weight: torch.Tensor):
        self.num_columns = len(weight)
        self._multiply = partial(F.linear, weight=weight)
        if ops._supports_onednn:
            with suppress(RuntimeError):  # processors with only AVX2 have no bfloat16 products
                prepared = ops.create_onednn_mm(weight.t(), MAX_PREPARED)
                self._multiply = partial(_multiply_padded, PreparedProduct(prepared))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._multiply(x)


class Float32Product(Product):
    """Product in float32. A half-precision weight is converted to a copy that takes twice the memory."""

    def __init__(self, weight: torch.Tensor):
        super().__init__(weight.float())

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._multiply(x.float())


def pad_products(model: nn.Module, is_traced: bool) -> None:
    """Pad the batches of vLLM's linear layers to a few sizes, so that oneDNN prepares products once."""
    padded = _multiply_unless_traced if is_traced else _multiply_padded
    for layer in model.modules():
        chosen = vars(layer)
        if isfunction(chosen.get("cpu_linear")):  # in vLLM's linear layer on the CPU; an int8 product is padded already
            handler = getclosurevars(chosen["cpu_linear"]).nonlocals.get("handler")
            is_prepared = type(handler) is ops.CPUDNNLGEMMHandler
            multiply = PreparedProduct(handler) if is_prepared else chosen["cpu_linear"]
            chosen["cpu_linear"] = partial(padded, multiply)
            if is_prepared:
                chosen["prepared_product"] = multiply


class PreparedProduct:
    """Product with a weight that oneDNN has prepared (vLLM's `CPUDNNLGEMMHandler`): x [..., H] -> [..., N].

    It does the same as vLLM's `onednn_mm`, but selects the operator's overload only once. torch takes a quarter of the
    time of a small product to select it.
    """

    def __init__(self, handler: Any):
        self._handler = handler
        self._num_columns = handler.n

    def __call__(self, x: torch.Tensor, weight: object = None, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return the product [..., N] of x [..., H]. The argument `weight`, which vLLM passes, is not used."""
        if x.dim() != 2:
            return ops.onednn_mm(self._handler, x, bias)
        product = torch.empty(x.shape[0], self._num_columns, dtype=x.dtype)
        self.write(x, product, bias)
        return product

    def write(self, x: torch.Tensor, out: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Write the product of x [M, H] to `out` [M, N], without padding M."""
        onednn_mm(out, x, bias, self._handler.handler_tensor)


def _multiply_padded(multiply: Callable[..., torch.Tensor], x: torch.Tensor, *weight_and_bias: object) -> torch.Tensor:
    """Return `multiply(x, ...)` [M, N] for x [M, H], computed with `x` padded to one of a few batch sizes."""
    num_rows = x.shape[0]  # faster than `len(x)`; Python overhead dominates short steps
    size = padded_size(num_rows)
    if num_rows == 1 and x.shape[-1] > narrow_width() and x.dim() == 2:
        size = MIN_WIDE_ROWS
    if size == num_rows:
        return multiply(x, *weight_and_bias)
    return multiply(F.pad(x, (0, 0, 0, size - num_rows)), *weight_and_bias)[:num_rows]


def _multiply_unless_traced(
    multiply: Callable[..., torch.Tensor], x: torch.Tensor, *weight_and_bias: object
) -> torch.Tensor:
    """Do the same as `_multiply_padded`, but without padding in a traced graph, which accepts any number of rows."""
    if torch.compiler.is_compiling():
        return multiply(x, *weight_and_bias)
    return _multiply_padded(multiply, x, *weight_and_bias)


UNROLLED = 64  # a multiple of the number of elements per iteration of torch's vectorised loops
# Largest number of elements that torch never divides among threads: GELU's kernel divides more than that, others divide
# 2 ** 15 or more.
GRAIN = 1 << 14


def activate_rows(activate: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Apply an elementwise torch function to x [N, H]; the result for a row is bit-identical in every batch.

    On a CPU, torch uses a different code path for the last elements of each row if rows are not adjacent in memory. In
    a contiguous batch, it uses this path for the last elements of each thread's part. All rows are then treated alike
    if their width is a multiple of `UNROLLED` and one thread computes the batch. The batch is therefore split into
    parts that are too small for several threads, or into single rows. vLLM's kernels compute each row independently,
    but take up to ten times as long.
    """
    if x.device.type != "cpu" or x.shape[0] == 1:
        return activate(x)
    has_equal_rows = x.shape[1] % UNROLLED == 0 or not x.is_contiguous()
    if has_equal_rows and (x.numel() <= GRAIN or torch.get_num_threads() == 1):
        return activate(x)
    return torch.cat([activate(rows) for rows in x.split(max(1, GRAIN // x.shape[1]) if has_equal_rows else 1)])


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """Return silu(a) * b, [N, H], for the halves a and b of `x` [N, 2 H], as vLLM's `SiluAndMul` does."""
    gate, up = x.chunk(2, -1)
    if torch.compiler.is_compiling():  # such a graph must accept any number of rows
        return F.silu(gate) * up
    return activate_rows(F.silu, gate).mul_(up)


Norm = tuple[torch.Tensor, float]  # weight and epsilon
# Selected once, because torch would otherwise choose among an operator's overloads in each call.
write_norm = torch.ops._C.rms_norm.default
add_norm = torch.ops._C.fused_add_rms_norm.default


class CpuAttention:
    """Replacement for `forward` of vLLM's attention in a decoder, without Python calls around its two operators."""

    def __init__(self, attention: Any):
        self._attention = attention
        self._cache, self._keys, self._values = (torch.empty(0),) * 3
        self._write = torch.ops._C.cpu_attn_reshape_and_cache.default
        self._read = torch.ops._C.cpu_attention_with_kv_cache.default

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Write keys and values to the KV cache, and return the attention output [N, heads * D]."""
        layer: Any = self._attention
        context: Any = get_forward_context()
        out = query.new_empty(query.shape[0], layer.num_heads * layer.head_size)
        if context.attn_metadata is None:  # vLLM's profile run
            return out
        attend = layer.impl
        keys, values = self._halves(layer.kv_cache)
        metadata = context.attn_metadata[layer.layer_name]
        slots = context.slot_mapping[layer.layer_name]
        cache_format = layer._k_scale_float, layer._v_scale_float, attend.kv_cache_dtype
        by_head = (-1, layer.num_kv_heads, layer.head_size)
        by_query = (-1, layer.num_heads, layer.head_size)
        self._write(key.view(by_head), value.view(by_head), keys, values, slots, layer.isa, *cache_format)
        self._read(
            query.view(by_query)[: metadata.num_actual_tokens],
            keys,
            values,
            out.view(by_query)[: metadata.num_actual_tokens],
            metadata.query_start_loc,
            metadata.seq_lens,
            attend.scale,
            metadata.causal,
            attend.alibi_slopes,
            attend.sliding_window,
            metadata.block_table,
            attend.logits_soft_cap,
            metadata.scheduler_metadata,
            attend.sinks,
            metadata.dynamic_causal,
            *cache_format,
        )
        return out

    def _halves(self, kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and the values of a KV cache, as the operators expect them."""
        if self._cache is not kv_cache:
            num_blocks, num_heads, size, _ = kv_cache.shape
            self._keys, self._values = kv_cache.view(num_blocks, num_heads, 2 * size, -1).chunk(2, 2)
            self._cache = kv_cache
        return self._keys, self._values


class CpuLayer:
    """Replacement for the `forward` method of vLLM's Llama, Qwen2 and Qwen3 decoder layers.

    A Llama layer may have cross-attention between self-attention and MLP (`RequestConditions.layer`). The same
    operators are called in the same order, so the results are bit-identical. For small batches, vLLM's Python functions
    around them take longer than the operators themselves.
    """

    def __init__(self, layer: Any):
        attention = layer.self_attn
        self._qkv = product_of(attention.qkv_proj)
        self._o = product_of(attention.o_proj)
        self._gate_up = product_of(layer.mlp.gate_up_proj)
        self._down = product_of(layer.mlp.down_proj)
        self._before = norm_of(layer.input_layernorm)
        self._behind = norm_of(layer.post_attention_layernorm)
        self._attend = CpuAttention(attention.attn)
        self._rotate = attention.rotary_emb.forward
        self._sizes = [attention.q_size, attention.kv_size, attention.kv_size]
        norms = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        self._head_norms = [norm_of(norm) for norm in norms if norm is not None]
        self._cross = (layer.cross_norm, layer.cross_attn) if hasattr(layer, "cross_attn") else None

    def __call__(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output of the MLP and the residual, [N, H] each.

        Args:
            hidden_states: Output of the previous layer's MLP, [N, H], which is overwritten. In the first layer, the
                embeddings, which become the residual.
            residual: Residual [N, H], updated in place; None in the first layer.
        """
        if residual is None:
            residual = hidden_states.contiguous()
            hidden_states = torch.empty_like(residual)
            write_norm(hidden_states, residual, *self._before)
        else:
            add_norm(hidden_states, residual, *self._before)
        query, key, value = self._qkv(hidden_states).split(self._sizes, -1)
        if self._head_norms:
            query, key = map(_normed_heads, (query, key), self._head_norms)
        query, key = self._rotate(positions, query, key)
        hidden_states = self._o(self._attend(query, key, value))
        if self._cross is not None:
            norm, attend = self._cross
            hidden_states = attend(norm(residual.add_(hidden_states)))
        add_norm(hidden_states, residual, *self._behind)
        return self._down(silu_and_mul(self._gate_up(hidden_states))), residual


def use_cpu_layers(model: nn.Module, config: VllmConfig) -> None:
    """Replace the `forward` methods of activations, attention, and the decoder layers that `CpuLayer` supports.

    Attention and layers of models with adapters, tensor parallelism or KV transfer keep vLLM's methods, and so do those
    of compiled models. Layers with weights quantized by vLLM keep their own method.
    """
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    for module in model.modules():
        if isinstance(module, SiluAndMul):
            module._forward_method = silu_and_mul
    is_eager = config.compilation_config.mode == CompilationMode.NONE
    is_plain = is_eager and config.parallel_config.tensor_parallel_size == 1
    if not is_plain or config.lora_config is not None or config.kv_transfer_config is not None:
        return
    layer: Any
    for layer in model.modules():
        if type(layer) is Attention and _is_cached(layer, CPUAttentionBackendImpl):
            vars(layer)["forward"] = CpuAttention(layer)
    for layer in model.modules():
        is_stock = type(layer) in (LlamaDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer)
        if not is_stock and not hasattr(layer, "cross_attn"):
            continue
        attention = layer.self_attn
        mlp = layer.mlp
        products = (attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj)
        if _is_cached(attention.attn, CPUAttentionBackendImpl) and all(
            "cpu_linear" in vars(product) for product in products
        ):
            layer.forward = CpuLayer(layer)


def _is_cached(attention: Any, implementation: type) -> bool:
    """Return True if attention reads keys and values from its own KV cache only."""
    impl: Any = attention.impl
    if type(attention.impl) is not implementation or attention.head_size_v != attention.head_size:
        return False
    others = attention.query_quant, attention.kv_sharing_target_layer_name, impl.sinks
    return impl.attn_type == AttentionType.DECODER and all(other is None for other in others)


def _normed_heads(heads: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Return the RMSNorm of each head of `heads`, [N, heads * D]."""
    # A single head stays a strided view of the projection, but the C++ kernel needs contiguous rows.
    rows = heads.reshape(-1, len(norm[0])).contiguous()
    normed = torch.empty_like(rows)
    write_norm(normed, rows, *norm)
    return normed.view(heads.shape)


def product_of(layer: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the fastest function that computes a linear layer; the layer itself if vLLM has quantized it."""
    if "cpu_linear" not in vars(layer):
        return layer
    multiply = vars(layer)["cpu_linear"]
    weight = layer.weight
    bias = layer.bias
    return lambda x: multiply(x, weight, bias)


def norm_of(layer: Any) -> Norm:
    return layer.weight.data, layer.variance_epsilon
