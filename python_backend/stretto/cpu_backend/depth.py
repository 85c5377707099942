"""Depth transformers on the CPU: few operators over buffers that are allocated once for each number of rows."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from stretto.cpu_backend.int8 import Int8Product
from stretto.cpu_backend.products import (
    MIN_WIDE_ROWS,
    PreparedProduct,
    add_norm,
    narrow_width,
    norm_of,
    padded_size,
    product_of,
    silu_and_mul,
    write_norm,
)

# Writes the product of x [R, H] to a buffer [R, N].
WriteProduct = Callable[[torch.Tensor, torch.Tensor], None]
# Buffers for a layer's new keys and values, and the keys and values that the layer reads.
KeysAndValues = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class CpuDepth:
    """Depth transformer on the CPU, with the weights of `DepthTransformer`.

    Returned states are overwritten by the next call.
    """

    def __init__(self, depth: Any):
        self.heads: torch.Tensor = depth.heads
        self._depth = depth
        self._embed = depth.embed.data
        self._norm = norm_of(depth.norm)
        layers = enumerate(depth.layers)
        self._layers = [_DepthLayer(layer, index, depth.rotary, is_first=index == 0) for index, layer in layers]
        self._rows = _DepthRows(depth, self._embed)

    def prepare(self, max_rows: int) -> None:
        """Allocate the buffer for keys and values of batches of up to `max_rows` rows."""
        self._rows.prepare(max_rows)

    def start(self, hidden: torch.Tensor) -> torch.Tensor:
        """Process position 0 of a frame from hidden states [N, W]; return the states [N, H] that predict stream 0."""
        buffers = self._rows.of(hidden.shape[0], 1)
        buffers.inputs[0].copy_(self._depth.project(hidden))
        return self._read(buffers, 0)

    def begin(self, hidden: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Process positions 0 and 1 of a frame, and return the states [N, H] that predict stream 1's codes.

        If `start` has run, only position 1 is processed.

        Args:
            code: Codes of stream 0, as rows of `embed`, [N].
        """
        if self._depth.spec.num_first:
            return self.next(code, 1)
        buffers = self._rows.of(code.shape[0], 2)
        buffers.inputs[0].copy_(self._depth.project(hidden))
        buffers.inputs[1].copy_(F.embedding(code, self._embed))
        return self._read(buffers, 0)

    def next(self, code: torch.Tensor, position: int) -> torch.Tensor:
        """Process one position of a frame and return the states [N, H] that predict the codes of stream `position`.

        Args:
            code: Codes of stream `position` - 1, as rows of `embed`, [N].
        """
        buffers = self._rows.of(code.shape[0], 1)
        torch.index_select(self._embed, 0, code, out=buffers.inputs[0])
        return self._read(buffers, position)

    def _read(self, buffers: "_Buffers", first: int) -> torch.Tensor:
        """Run all layers on the positions in `buffers`; return the last position's hidden states, [N, H].

        The first of these positions is `first` in the frame.
        """
        for layer in self._layers:
            layer(buffers, first)
        add_norm(buffers.x, buffers.residual, *self._norm)
        return buffers.outputs


class CpuSteppedDepth:
    """Depth transformer on the CPU with the per-position weights of `SteppedDepth`.

    Returned states are overwritten by the next call.
    """

    def __init__(self, depth: Any):
        self.heads: torch.Tensor = depth.heads
        self._depth = depth
        self._embed = depth.embed.data
        self._layers = [
            [_DepthLayer(weights, index, None, is_first=index == 0, norms=layer) for weights in layer.sets]
            for index, layer in enumerate(depth.layers)
        ]
        self._rows = _DepthRows(depth, self._embed)

    def prepare(self, max_rows: int) -> None:
        """Allocate the buffer for keys and values of batches of up to `max_rows` rows."""
        self._rows.prepare(max_rows)

    def begin(self, hidden: torch.Tensor, code: torch.Tensor, second: torch.Tensor | None = None) -> torch.Tensor:
        """Process position 0 of a frame and return the states [N, H] that predict stream 1's codes.

        Args:
            code: Ids of stream 0, as rows of `embed`, [N].
            second: Ids of the second text stream, as rows of `embed`, [N]; -1 for none.
        """
        self._projected = self._depth.project(hidden).chunk(self._depth.spec.num_sets, 1)
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
        buffers = self._rows.of(embeds.shape[0], 1)
        torch.add(self._projected[index], embeds, out=buffers.inputs[0])
        for sets in self._layers:
            sets[index](buffers, position)
        buffers.x.add_(buffers.residual)
        return buffers.outputs


class _DepthRows:
    """Buffers of a depth transformer, allocated again when the number of rows of a frame changes.

    Rows that pad the batch are computed like all others, and their results are ignored.
    """

    def __init__(self, depth: Any, like: torch.Tensor):
        self._spec = depth.spec
        self._num_positions = depth.num_positions
        self._like = like
        widths = self._spec.hidden, self._spec.intermediate, self._spec.num_heads * self._spec.head_dim
        self._is_wide = max(widths) > narrow_width()
        self._num_rows = 0
        self._buffers = dict[int, _Buffers]()

    def prepare(self, max_rows: int) -> None:
        """Allocate the buffer for keys and values, [layers, max rows, 2, heads, positions, D]."""
        spec = self._spec
        shape = self._padded(max_rows), 2, spec.num_kv_heads, self._num_positions, spec.head_dim
        self._kv = self._like.new_zeros(spec.num_layers, *shape)

    def of(self, num_rows: int, count: int) -> "_Buffers":
        """Return the buffers for `count` positions of each of `num_rows` rows."""
        if num_rows != self._num_rows:
            self._num_rows = num_rows
            self._buffers.clear()
        if count not in self._buffers:
            kv = self._kv[:, : self._padded(num_rows)]
            self._buffers[count] = _Buffers(self._spec, kv, num_rows, count)
        return self._buffers[count]

    def _padded(self, num_rows: int) -> int:
        """Return the number of rows of all products, padded so that twice as many rows are a padded size, too."""
        return MIN_WIDE_ROWS if num_rows == 1 and self._is_wide else padded_size(num_rows)


class _Buffers:
    """Buffers that all layers of a pass share, for R = M * T rows: T = `count` positions of M rows of a batch.

    Args:
        kv: Keys and values of the frame, [layers, M, 2, heads, positions, D].
        num_rows: Number N of rows of the batch that are not padding.

    Attributes:
        x, residual: Input of each product in the width of the layers, and residual, [R, H]. The layers' output is also
            in `x`.
        inputs: Buffers for the embeddings of the N rows, one for each of the T positions, [N, H]; views of `residual`.
        outputs: Output at the last position of the N rows, [N, H]; a view of `x`.
        qkv: Queries, keys and values, [R, (heads + 2 * KV heads) * D].
        heads, head_rows: Queries and keys, [R, (heads + KV heads) * D] and [R, heads + KV heads, D]; views of `qkv`.
        normed: Buffer for normalised heads, [R * (heads + KV heads), D].
        query: Queries, [M, heads, T, D]; a view of `qkv`.
        opened, gated: Output of the gate and up projections, [R, 2 * I], and input of the down projection, [R, I].
    """

    def __init__(self, spec: Any, kv: torch.Tensor, num_rows: int, count: int):
        size = kv.shape[1]
        num_heads = spec.num_heads
        num_kv_heads = spec.num_kv_heads
        num = size * count
        both = num_heads + num_kv_heads
        self.x = kv.new_zeros(num, spec.hidden)
        self.residual = kv.new_zeros(num, spec.hidden)
        self.inputs = self.residual.view(size, count, -1)[:num_rows].unbind(1)
        self.outputs = self.x.view(size, count, -1)[:num_rows, -1]
        self.qkv = kv.new_zeros(num, (both + num_kv_heads) * spec.head_dim)
        self.heads = self.qkv[:, : both * spec.head_dim]
        self.head_rows = self.heads.unflatten(1, (both, spec.head_dim))
        self.normed = kv.new_zeros(num * both, spec.head_dim)
        by_head = self.qkv.view(size, count, both + num_kv_heads, spec.head_dim)
        self.query = by_head[:, :, :num_heads].transpose(1, 2)
        self._new = by_head[:, :, num_heads:].unflatten(2, (2, num_kv_heads)).permute(0, 2, 3, 1, 4)
        self.opened = kv.new_zeros(num, 2 * spec.intermediate)
        self.gated = kv.new_zeros(num, spec.intermediate)
        self.is_causal = count > 1
        self._kv = kv
        self._count = count
        self._positions = dict[int, torch.Tensor]()
        self._views = dict[tuple[int, int], KeysAndValues]()

    def store(self, layer: int, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new keys and values of a layer and return all keys and values up to then, [M, KV heads, n, D]."""
        views = self._views.get((layer, first))
        if views is None:
            stop = first + self._count
            kv = self._kv[layer]
            keys, values = kv[:, :, :, :stop].unbind(1)
            views = self._views[layer, first] = kv[:, :, :, first:stop], keys, values
        new, keys, values = views
        new.copy_(self._new)
        return keys, values

    def positions(self, first: int) -> torch.Tensor:
        """Return the rotary positions of the R rows, from `first`, int64 [R]."""
        if first not in self._positions:
            positions = torch.arange(first, first + self._count)
            self._positions[first] = positions.repeat(self.x.shape[0] // self._count)
        return self._positions[first]


class _DepthLayer:
    """Layer of a depth transformer.

    Args:
        is_first: True for the first layer, whose input is the residual.
        norms: Module with the norms before attention and MLP; None for `layer` itself.
    """

    def __init__(self, layer: Any, index: int, rotary: Any, *, is_first: bool, norms: Any = None):
        self._index = index
        self._is_first = is_first
        spec = layer.spec
        self._qkv = _writer(layer.qkv_proj)
        self._o = _writer(layer.o_proj)
        self._gate_up = _writer(layer.gate_up_proj)
        self._down = _writer(layer.down_proj)
        norms = norms or layer
        self._before = norm_of(norms.input_layernorm)
        self._behind = norm_of(norms.post_attention_layernorm)
        self._head_norms = _HeadNorms(layer) if spec.has_head_norms else None
        self._rotary: Sequence[Any] | None = None
        if rotary is not None:
            cache = rotary.cos_sin_cache.to(self._before[0].dtype)
            self._rotary = None, spec.head_dim, cache, rotary.is_neox_style
        self._rotate: Any = torch.ops._C.rotary_embedding.default
        self._activate: Any = torch.ops._C.silu_and_mul.default
        if spec.intermediate % VECTOR:
            self._activate = _activate_any_width

    def __call__(self, buffers: _Buffers, first: int) -> None:
        """Replace `buffers.x` by the MLP's output at the positions from `first` on, and update `buffers.residual`."""
        x = buffers.x
        residual = buffers.residual
        if self._is_first:
            write_norm(x, residual, *self._before)
        else:
            add_norm(x, residual, *self._before)
        self._qkv(x, buffers.qkv)
        if self._head_norms is not None:
            self._head_norms(buffers)
        if self._rotary is not None:
            self._rotate(buffers.positions(first), buffers.heads, *self._rotary)  # in place
        keys, values = buffers.store(self._index, first)
        out = F.scaled_dot_product_attention(buffers.query, keys, values, is_causal=buffers.is_causal, enable_gqa=True)
        self._o(out.transpose(1, 2).reshape(x.shape[0], -1), x)
        add_norm(x, residual, *self._behind)
        self._gate_up(x, buffers.opened)
        self._activate(buffers.gated, buffers.opened)
        self._down(buffers.gated, x)


VECTOR = 16  # a multiple of the number of elements of which vLLM's activation reads whole vectors


def _activate_any_width(gated: torch.Tensor, opened: torch.Tensor) -> None:
    """Do the same as vLLM's `silu_and_mul`, which refuses widths that are no multiple of a vector."""
    gated.copy_(silu_and_mul(opened))


class _HeadNorms:
    """Norms of query heads and key heads, which have different weights, in one operation."""

    def __init__(self, layer: Any):
        spec = layer.spec
        query = layer.q_norm.weight.data
        key = layer.k_norm.weight.data
        self._weights = torch.stack([query] * spec.num_heads + [key] * spec.num_kv_heads)
        self._plain = torch.ones_like(query), spec.eps

    def __call__(self, buffers: _Buffers) -> None:
        rows = buffers.head_rows
        normed = buffers.normed
        write_norm(normed, rows.reshape(normed.shape), *self._plain)
        torch.mul(normed.view(rows.shape), self._weights, out=rows)


def _writer(layer: Any) -> WriteProduct:
    """Return the function that writes a linear layer's product to a buffer, without padding the rows."""
    product = vars(layer).get("prepared_product", vars(layer).get("cpu_linear"))
    bias = layer.bias
    if isinstance(product, PreparedProduct | Int8Product):
        write = product.write
        return write if bias is None else lambda x, out: write(x, out, bias)
    multiply = product_of(layer)

    def write_copy(x: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(multiply(x))

    return write_copy
