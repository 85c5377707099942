"""GPU operators: embedding sums, float32 products, a depth transformer and vLLM's fused operators.

The depth transformer takes eight launches per layer, including the norm after the layer.

`depth_attention_kernel` does everything between the attention projections in one launch: it normalises and rotates
the heads of one or two positions, stores their keys and values, and attends to the frame so far.

Layers that run outside torch.compile call vLLM's fused CUDA operators directly.

vLLM's default compilation mode disables these operators and relies on torch.compile to fuse the native ones. In layers
that are not compiled, each norm, activation and rotation would then take up to fourteen kernel launches.
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
    """Return the sum of each row's stream embeddings, [N, H], in the table's dtype.

    The sum is computed in float32. Ids are not checked.

    Args:
        table: Embeddings of the whole vocabulary, [V, H].
        ids: Ids of all streams, [N, S].
        pad_id: Id of empty streams.
        pad_is_silent: True if `pad_id` contributes nothing except on stream 0.
        out: Output buffer, or None.
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

    With VLLM_BATCH_INVARIANT, vLLM's own product computes each row with the same tiles and in the same order, whatever
    the number of rows. vLLM's linear layers call it as well, but torch calls it only before compute capability 9.0.
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
    """Return the object with which vLLM computes a linear layer in FP8, or None if there is none.

    This object also quantizes the layer's input.
    """
    owners: tuple[Any, ...] = getattr(layer, "quant_method", None), getattr(layer, "scheme", None)
    return next((owner.fp8_linear for owner in owners if hasattr(owner, "fp8_linear")), None)


def uncompiled_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Yield `module` and the modules in it, without those that vLLM compiles and everything in these."""
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
                own = copy.copy(child)
                own._forward_method = own.forward_cuda
                setattr(layer, name, own)


MAX_POSITIONS = 32


@triton.jit
def _read_head(
    head: tl.tensor, weight: tl.tensor, cos_sin: tl.tensor, dims: tl.tensor, head_dim: tl.constexpr, eps: tl.constexpr
) -> tl.tensor:
    """Load a head of D features, normalise it if `weight` is given, rotate it, and return it as float32 [block]."""
    half: tl.constexpr = head_dim // 2
    inside = dims < head_dim
    is_first = dims < half
    others = tl.where(is_first, dims + half, dims - half)
    angle = tl.where(is_first, dims, dims - half)
    own = tl.load(head + dims, mask=inside, other=0.0)
    other = tl.load(head + others, mask=inside, other=0.0)
    if weight is not None:
        wide = own.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, 0) / head_dim + eps)
        other = (other.to(tl.float32) * scale).to(own.dtype)
        own = (wide * scale).to(own.dtype)
        own = (own.to(tl.float32) * tl.load(weight + dims, mask=inside, other=0.0).to(tl.float32)).to(own.dtype)
        other = (other.to(tl.float32) * tl.load(weight + others, mask=inside, other=0.0).to(tl.float32)).to(own.dtype)
    cos = tl.load(cos_sin + angle, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(cos_sin + half + angle, mask=inside, other=0.0).to(tl.float32)
    rotated = own.to(tl.float32) * cos + other.to(tl.float32) * tl.where(is_first, -sin, sin)
    return rotated.to(own.dtype).to(tl.float32)


@triton.jit(do_not_specialize=["first"])
def depth_attention_kernel(
    out: tl.tensor,  # [N * T, Q * D], written
    qkv: tl.tensor,  # [N * T, (Q + 2 G) * D]: queries, keys and values of T positions of each row
    keys: tl.tensor,  # [max N, G, P, D]; T positions, beginning with `first`, are written
    values: tl.tensor,  # like `keys`
    query_weight: tl.tensor,  # [D], or None without head norms
    key_weight: tl.tensor,
    cos_sin: tl.tensor,  # [P, D]: cosines of a position's D / 2 angles, then their sines
    first: tl.tensor,  # first of the T positions
    eps: tl.constexpr,
    num_new: tl.constexpr,  # T
    num_heads: tl.constexpr,  # Q
    num_kv_heads: tl.constexpr,  # G
    head_dim: tl.constexpr,  # D
    num_positions: tl.constexpr,  # P
    block_positions: tl.constexpr,
    block_dims: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    head = tl.program_id(1)
    shared: tl.constexpr = num_heads // num_kv_heads
    width: tl.constexpr = (num_heads + 2 * num_kv_heads) * head_dim
    group = head // shared
    dims = tl.arange(0, block_dims)
    places = tl.arange(0, block_positions)
    inside = dims < head_dim
    cache = (row.to(tl.int64) * num_kv_heads + group) * num_positions * head_dim
    block = cache + places[:, None] * head_dim + dims[None, :]
    is_old = (places < first)[:, None] & inside[None, :]
    known = tl.load(keys + block, mask=is_old, other=0.0).to(tl.float32)
    summed = tl.load(values + block, mask=is_old, other=0.0).to(tl.float32)
    line = qkv + row.to(tl.int64) * (num_new * width)
    for new in tl.static_range(num_new):
        position = first + new
        here = line + new * width + num_heads * head_dim + group * head_dim
        key = _read_head(here, key_weight, cos_sin + position * head_dim, dims, head_dim, eps)
        value = tl.load(here + num_kv_heads * head_dim + dims, mask=inside, other=0.0)
        if head % shared == 0:
            target = cache + position * head_dim + dims
            tl.store(keys + target, key.to(keys.dtype.element_ty), mask=inside)
            tl.store(values + target, value, mask=inside)
        is_here = (places == position)[:, None]
        known = tl.where(is_here, key[None, :], known)
        summed = tl.where(is_here, value.to(tl.float32)[None, :], summed)
    for new in tl.static_range(num_new):
        position = first + new
        here = line + new * width + head * head_dim
        query = _read_head(here, query_weight, cos_sin + position * head_dim, dims, head_dim, eps)
        scores = tl.sum(known * query[None, :], 1) * (head_dim**-0.5)
        scores = tl.where(places <= position, scores, float("-inf"))
        weights = tl.exp(scores - tl.max(scores, 0))
        attended = tl.sum(summed * weights[:, None], 0) / tl.sum(weights, 0)
        written = out + ((row.to(tl.int64) * num_new + new) * num_heads + head) * head_dim + dims
        tl.store(written, attended.to(out.dtype.element_ty), mask=inside)


class DeviceDepth:
    """Depth transformer on a GPU, with the weights of `DepthTransformer`."""

    def __init__(self, depth: Any):
        rotary = depth.rotary
        spec = depth.spec
        if depth.num_positions > MAX_POSITIONS:
            raise ValueError(f"depth transformer: at most {MAX_POSITIONS} positions, got {depth.num_positions}")
        if rotary.rotary_dim != spec.head_dim or not rotary.is_neox_style:
            raise ValueError(
                "depth transformer: expected NeoX-style rotary embeddings over whole heads, got another style"
            )
        fuse_quantization(depth)
        self.heads: torch.Tensor = depth.heads
        self._depth = depth
        self._embed = depth.embed.data
        self._cos_sin = rotary.cos_sin_cache.to(self._embed.dtype)
        num_first = 1 if spec.num_first else 2
        self._layers = [
            _Layer(layer, depth.num_positions, self._cos_sin, num_first=num_first) for layer in depth.layers
        ]

    def prepare(self, max_rows: int) -> None:
        """Allocate the buffers for keys and values of batches of up to `max_rows` rows."""
        spec = self._depth.spec
        for layer in self._layers:
            shape = 2, max_rows, spec.num_kv_heads, self._depth.num_positions, spec.head_dim
            layer.keys, layer.values = self._embed.new_zeros(shape)

    def start(self, hidden: torch.Tensor) -> torch.Tensor:
        """Process position 0 of a frame; return the states [N, H] that predict stream 0 (`DepthSpec.num_first`).

        Args:
            hidden: The backbone's hidden states, [N, W]; unchanged.
        """
        x = self._depth.project(hidden)
        return self._read(x.clone() if x is hidden else x, 0)

    def begin(self, hidden: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Process positions 0 and 1 of a frame; return the states [N, H] that predict stream 1's codes.

        After `start`, only position 1 is left.

        Args:
            hidden: The backbone's hidden states, [N, W].
            code: Codes of stream 0, as rows of `embed`, [N].
        """
        if self._depth.spec.num_first:
            return self.next(code, 1)
        x = torch.stack([self._depth.project(hidden), F.embedding(code, self._embed)], 1)
        return self._read(x.flatten(0, 1), 0).view(len(code), 2, -1).select(1, 1)

    def next(self, code: torch.Tensor, position: int) -> torch.Tensor:
        """Process one position of a frame; return the states [N, H] that predict the next stream's codes.

        The next stream is stream `position`.

        Args:
            code: Codes of stream `position` - 1, as rows of `embed`, [N].
            position: Position in the frame, from 2.
        """
        return self._read(F.embedding(code, self._embed), position)

    def _read(self, x: torch.Tensor, first: int) -> torch.Tensor:
        """Return the output of all layers, [N * T, H]; `x` is overwritten.

        Args:
            x: Inputs at T consecutive positions of each row, [N * T, H], grouped by row.
            first: First position.
        """
        depth = self._depth
        residual = x
        x = rms_norm(depth.layers[0].input_layernorm, x)
        for layer, following in zip(self._layers, (*depth.layers[1:], None), strict=True):
            x = layer(x, residual, first)
            x, residual = rms_norm(depth.norm if following is None else following.input_layernorm, x, residual)
        return x


class DeviceSteppedDepth:
    """Depth transformer on a GPU with the per-position weights of `SteppedDepth`."""

    def __init__(self, depth: Any):
        spec = depth.spec
        num_positions = depth.num_positions
        if num_positions > MAX_POSITIONS:
            raise ValueError(f"depth transformer: at most {MAX_POSITIONS} positions, got {num_positions}")
        fuse_quantization(depth)
        self.heads: torch.Tensor = depth.heads
        self._depth = depth
        self._embed = depth.embed.data
        no_rotation = self._embed.new_zeros(num_positions, spec.head_dim)  # cosines 1, sines 0
        no_rotation[:, : spec.head_dim // 2] = 1.0
        self._layers = [
            [_Layer(each, num_positions, no_rotation, layer, 1) for each in layer.sets] for layer in depth.layers
        ]

    def prepare(self, max_rows: int) -> None:
        """Allocate the buffers for keys and values of batches of up to `max_rows` rows."""
        spec = self._depth.spec
        for sets in self._layers:
            shape = 2, max_rows, spec.num_kv_heads, self._depth.num_positions, spec.head_dim
            keys, values = self._embed.new_zeros(shape)
            for layer in sets:
                layer.keys = keys
                layer.values = values

    def begin(self, hidden: torch.Tensor, code: torch.Tensor, second: torch.Tensor | None = None) -> torch.Tensor:
        """Process position 0 of a frame; return the states [N, H] that predict stream 1's codes.

        Args:
            hidden: The backbone's hidden states, [N, W].
            code: Ids of stream 0, as rows of `embed`, [N].
            second: Ids of the second text stream, as rows of `embed`, [N]; -1 for none.
        """
        self._projected = self._depth.project(hidden).chunk(self._depth.spec.num_sets, 1)
        embeds = F.embedding(code, self._embed)
        if second is not None:
            embeds = embeds + F.embedding(second.clamp(min=0), self._embed) * (second >= 0)[:, None]
        return self._read(embeds, 0)

    def next(self, code: torch.Tensor, position: int) -> torch.Tensor:
        """Process one position of a frame; return the states [N, H] that predict the next stream's codes.

        The next stream is stream `position`.

        Args:
            code: Ids of stream `position` - 1, as rows of `embed`, [N].
            position: Position in the frame, from 1.
        """
        return self._read(F.embedding(code, self._embed), position - 1)

    def _read(self, embeds: torch.Tensor, place: int) -> torch.Tensor:
        """Return the output of all layers at `place` in the frame, [N, H], for embedded ids [N, H]."""
        index = self._depth.spec.schedule[place]
        layers = self._depth.layers
        residual = self._projected[index] + embeds
        x = rms_norm(layers[0].input_layernorm, residual)
        for sets, following in zip(self._layers, (*layers[1:], None), strict=True):
            x = sets[index](x, residual, place)
            if following is not None:
                x, residual = rms_norm(following.input_layernorm, x, residual)
        return x + residual


class _Layer:
    """Depth transformer layer with its keys and values for one frame, [max N, G, positions, D] each."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, layer: Any, num_positions: int, cos_sin: torch.Tensor, norms: Any = None, num_first: int = 2):
        spec = layer.spec
        self._norm = (norms or layer).post_attention_layernorm
        self._num_first = num_first
        self._layer = layer
        self._cos_sin = cos_sin
        self._width = spec.num_heads * spec.head_dim
        self._num_heads = spec.num_heads
        norms = (layer.q_norm, layer.k_norm) if spec.has_head_norms else ()
        self._weights = [norm.weight.data for norm in norms] or [None, None]
        self._sizes = (
            spec.num_heads, spec.num_kv_heads, spec.head_dim, num_positions,
            triton.next_power_of_2(num_positions), triton.next_power_of_2(spec.head_dim),
        )  # fmt: skip

    def __call__(self, x: torch.Tensor, residual: torch.Tensor, first: int) -> torch.Tensor:
        """Return the MLP output [N * T, H] for normalised `x` [N * T, H]; update `residual` in place."""
        layer = self._layer
        x = layer.o_proj(self._attend(layer.qkv_proj(x), first))
        x, _ = rms_norm(self._norm, x, residual)
        return layer.down_proj(silu_and_mul(layer.gate_up_proj(x)))

    def _attend(self, qkv: torch.Tensor, first: int) -> torch.Tensor:
        """Return the attention output [N * T, Q * D], and store the new keys and values."""
        num_new = self._num_first if first == 0 else 1
        out = qkv.new_empty(len(qkv), self._width)
        depth_attention_kernel[len(qkv) // num_new, self._num_heads](
            out, qkv, self.keys, self.values, *self._weights, self._cos_sin, first, self._layer.spec.eps, num_new,
            *self._sizes, num_warps=4 if self._sizes[4] <= 16 else 8,
        )  # fmt: skip
        return out
