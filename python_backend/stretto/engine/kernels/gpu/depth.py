"""Depth transformers on a GPU: five launches a layer, or nine if vLLM computes its products because they are quantized.

`depth_attention_kernel` does everything between the attention projections in one launch. It normalises and rotates the
heads of one or two positions, stores their keys and values, and attends to the frame so far. It is separate from the
product before it, because a head's norm needs the whole head. A program of that product has 16 of its features.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from vllm.model_executor.layers.linear import LinearBase

from stretto.engine.kernels.gpu.products import fuse_quantization, rms_norm
from stretto.engine.kernels.gpu.row_products import launches_early, product_of

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
    mine = tl.load(head + dims, mask=inside, other=0.0)
    other = tl.load(head + others, mask=inside, other=0.0)
    if weight is not None:
        wide = mine.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, 0) / head_dim + eps)
        other = (other.to(tl.float32) * scale).to(mine.dtype)
        mine = (wide * scale).to(mine.dtype)
        mine = (mine.to(tl.float32) * tl.load(weight + dims, mask=inside, other=0.0).to(tl.float32)).to(mine.dtype)
        other = (other.to(tl.float32) * tl.load(weight + others, mask=inside, other=0.0).to(tl.float32)).to(mine.dtype)
    cos = tl.load(cos_sin + angle, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(cos_sin + half + angle, mask=inside, other=0.0).to(tl.float32)
    rotated = mine.to(tl.float32) * cos + other.to(tl.float32) * tl.where(is_first, -sin, sin)
    return rotated.to(mine.dtype).to(tl.float32)


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
    is_dependent: tl.constexpr,  # True with `launch_pdl`; see `row_products.py`
) -> None:
    if is_dependent:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
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
    all_keys = tl.load(keys + block, mask=is_old, other=0.0).to(tl.float32)
    all_values = tl.load(values + block, mask=is_old, other=0.0).to(tl.float32)
    line = qkv + row.to(tl.int64) * (num_new * width)
    for new in tl.static_range(num_new):
        position = first + new
        source = line + new * width + num_heads * head_dim + group * head_dim
        key = _read_head(source, key_weight, cos_sin + position * head_dim, dims, head_dim, eps)
        value = tl.load(source + num_kv_heads * head_dim + dims, mask=inside, other=0.0)
        if head % shared == 0:
            target = cache + position * head_dim + dims
            tl.store(keys + target, key.to(keys.dtype.element_ty), mask=inside)
            tl.store(values + target, value, mask=inside)
        is_here = (places == position)[:, None]
        all_keys = tl.where(is_here, key[None, :], all_keys)
        all_values = tl.where(is_here, value.to(tl.float32)[None, :], all_values)
    for new in tl.static_range(num_new):
        position = first + new
        source = line + new * width + head * head_dim
        query = _read_head(source, query_weight, cos_sin + position * head_dim, dims, head_dim, eps)
        scores = tl.sum(all_keys * query[None, :], 1) * (head_dim**-0.5)
        scores = tl.where(places <= position, scores, float("-inf"))
        weights = tl.exp(scores - tl.max(scores, 0))
        attended = tl.sum(all_values * weights[:, None], 0) / tl.sum(weights, 0)
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
        self._project = _projection(depth)
        self._num_first = 1 if spec.num_first else 2
        cos_sin = rotary.cos_sin_cache.to(self._embed.dtype)
        self._layers = [_Layer(layer, depth.num_positions, cos_sin) for layer in depth.layers]

    def prepare(self, max_rows: int) -> None:
        """Allocate the buffers for keys and values of batches of up to `max_rows` rows."""
        spec = self._depth.spec
        for layer in self._layers:
            shape = 2, max_rows, spec.num_kv_heads, self._depth.num_positions, spec.head_dim
            layer.keys, layer.values = self._embed.new_zeros(shape)

    def start(self, hidden: torch.Tensor) -> torch.Tensor:
        """Process position 0 of a frame from hidden states [N, W]; return the states [N, H] that predict stream 0."""
        return self._read(self._project(hidden), 0)

    def begin(self, hidden: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Process positions 0 and 1 of a frame, and return the states [N, H] that predict stream 1's codes.

        If `start` has run, only position 1 is processed.

        Args:
            code: Codes of stream 0, as rows of `embed`, [N].
        """
        if self._depth.spec.num_first:
            return self.next(code, 1)
        x = torch.stack([self._project(hidden), F.embedding(code, self._embed)], 1)
        return self._read(x.flatten(0, 1), 0)

    def next(self, code: torch.Tensor, position: int) -> torch.Tensor:
        """Process one position of a frame and return the states [N, H] that predict the codes of stream `position`.

        Args:
            code: Codes of stream `position` - 1, as rows of `embed`, [N].
        """
        return self._read(F.embedding(code, self._embed), position)

    def _read(self, x: torch.Tensor, first: int) -> torch.Tensor:
        """Return the output of all layers at the last of T positions, [N, H], for inputs [N * T, H] grouped by row."""
        num_new = self._num_first if first == 0 else 1
        for layer in self._layers:
            x = layer(x, first, num_new)
        if num_new > 1:
            x = x.view(-1, num_new, x.shape[1]).select(1, num_new - 1).contiguous()
        normed: torch.Tensor = rms_norm(self._depth.norm, x)
        return normed


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
        self._project = _projection(depth)
        no_rotation = self._embed.new_zeros(num_positions, spec.head_dim)  # cosines 1, sines 0
        no_rotation[:, : spec.head_dim // 2] = 1.0
        self._layers = [
            [_Layer(weights, num_positions, no_rotation, layer) for weights in layer.sets] for layer in depth.layers
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
        """Process position 0 of a frame and return the states [N, H] that predict stream 1's codes.

        Args:
            code: Ids of stream 0, as rows of `embed`, [N].
            second: Ids of the second text stream, as rows of `embed`, [N]; -1 for none.
        """
        self._projected = self._project(hidden).chunk(self._depth.spec.num_sets, 1)
        embeds = F.embedding(code, self._embed)
        if second is not None:
            embeds = embeds + F.embedding(second.clamp(min=0), self._embed) * (second >= 0)[:, None]
        return self._read(embeds, 0)

    def next(self, code: torch.Tensor, position: int) -> torch.Tensor:
        """Process one position of a frame and return the states [N, H] that predict the codes of stream `position`.

        Args:
            code: Ids of stream `position` - 1, as rows of `embed`, [N].
        """
        return self._read(F.embedding(code, self._embed), position - 1)

    def _read(self, embeds: torch.Tensor, position: int) -> torch.Tensor:
        """Return the output of all layers at `position` in the frame, [N, H], for embedded ids [N, H]."""
        index = self._depth.spec.schedule[position]
        x = self._projected[index] + embeds
        for sets in self._layers:
            x = sets[index](x, position)
        return x


def _projection(depth: Any) -> Any:
    """Return the product that projects the backbone's hidden state, or the identity."""
    return product_of(depth.project) if isinstance(depth.project, LinearBase) else depth.project


class _Layer:
    """Depth transformer layer with its keys and values for one frame, [max N, G, positions, D] each.

    Args:
        cos_sin: Cosines and sines of each position's angles, [positions, D].
        norms: Module with the norms before attention and MLP; None for `layer` itself.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, layer: Any, num_positions: int, cos_sin: torch.Tensor, norms: Any = None):
        spec = layer.spec
        norms = norms or layer
        self._qkv = product_of(layer.qkv_proj, norms.input_layernorm)
        self._out = product_of(layer.o_proj)
        self._gate_up = product_of(layer.gate_up_proj, norms.post_attention_layernorm, is_gated=True)
        self._down = product_of(layer.down_proj)
        self._width = spec.num_heads * spec.head_dim
        self._num_heads = spec.num_heads
        self._eps = spec.eps
        self._weights: list[Any] = [None, None]
        if spec.has_head_norms:
            self._weights = [norm.weight.data for norm in (layer.q_norm, layer.k_norm)]
        self._weights.append(cos_sin)
        block_positions = triton.next_power_of_2(num_positions)
        self._sizes = (
            spec.num_heads, spec.num_kv_heads, spec.head_dim, num_positions,
            block_positions, triton.next_power_of_2(spec.head_dim), launches_early(),
        )  # fmt: skip
        self._options = {"num_warps": 4 if block_positions <= 16 else 8}
        if launches_early():
            self._options["launch_pdl"] = True

    def __call__(self, x: torch.Tensor, first: int, num_new: int = 1) -> torch.Tensor:
        """Return the output for inputs [N * T, H] grouped by row, and store the keys and values of T positions."""
        qkv = self._qkv(x)
        attended = qkv.new_empty(len(qkv), self._width)
        depth_attention_kernel[len(qkv) // num_new, self._num_heads](
            attended, qkv, self.keys, self.values, *self._weights, first, self._eps, num_new, *self._sizes,
            **self._options,
        )  # fmt: skip
        x = self._out(attended, x)
        return self._down(self._gate_up(x), x)
