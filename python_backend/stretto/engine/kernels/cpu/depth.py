"""CPU twin of the depth transformer's layers (`models/depth_transformer.py`), calling each operation directly.

For a small model one code costs tens of microseconds of arithmetic. Dispatching module calls in Python and torch costs
several times that.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from vllm import _custom_ops  # noqa: F401  (loads vLLM's C++)

Norm = tuple[torch.Tensor, float]  # weight and epsilon


class HostDepth:
    """Depth transformer on the CPU, with the weights of a `DepthTransformer`."""

    def __init__(self, depth: Any):
        self.heads: torch.Tensor = depth.heads
        self._depth, self._embed, self._norm = depth, depth.embed.data, _norm(depth.norm)
        self._layers = [_Layer(layer, depth.rotary) for layer in depth.layers]

    def prepare(self, max_rows: int) -> None:
        """Allocate keys and values for up to `max_rows` rows."""
        spec, num_positions = self._depth.spec, self._depth.num_positions
        for layer in self._layers:
            layer.kv = self._embed.new_zeros(max_rows, 2, spec.num_kv_heads, num_positions, spec.head_dim)
        self._positions = torch.arange(num_positions)[:, None].repeat(1, max_rows)
        self._first_positions = self._positions[:2].T.reshape(-1).contiguous()

    def begin(self, hidden: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Return the states [N, H] that predict stream 1, given hidden states [N, W] and the codes [N] of stream 0."""
        x = torch.stack([self._depth.project(hidden), F.embedding(code, self._embed)], 1).flatten(0, 1)
        return self._read(x, 0, self._first_positions[: x.shape[0]])[1::2]

    def next(self, code: torch.Tensor, position: int) -> torch.Tensor:
        """Return the states [N, H] that predict stream `position`, given the previous codes [N] as rows of `embed`."""
        return self._read(F.embedding(code, self._embed), position, self._positions[position, : code.shape[0]])

    def _read(self, x: torch.Tensor, first: int, positions: torch.Tensor) -> torch.Tensor:
        """Pass rows x [N * T, H] of T positions from `first` on, grouped by row, through all layers."""
        residual = torch.zeros_like(x)
        for layer in self._layers:
            x = layer(x, residual, first, positions)
        torch.ops._C.fused_add_rms_norm(x, residual, *self._norm)
        return x


class _Layer:
    """One layer with the keys and values of a frame: kv [max N, 2, heads, P, D]."""

    kv: torch.Tensor

    def __init__(self, layer: Any, rotary: Any):
        spec = layer.spec
        self._size, self._num_heads, self._num_kv_heads = spec.head_dim, spec.num_heads, spec.num_kv_heads
        self._qkv, self._o = _product(layer.qkv_proj), _product(layer.o_proj)
        self._gate_up, self._down = _product(layer.gate_up_proj), _product(layer.down_proj)
        self._before, self._behind = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        self._head_norms = _HeadNorms(layer) if spec.has_head_norms else None
        self._rotate = rotary.forward_cpu

    def __call__(self, x: torch.Tensor, residual: torch.Tensor, first: int, positions: torch.Tensor) -> torch.Tensor:
        """Return the MLP output for `x`, which is overwritten; `residual` is updated in place."""
        torch.ops._C.fused_add_rms_norm(x, residual, *self._before)
        x = self._o(self._attend(self._qkv(x), first, positions))
        torch.ops._C.fused_add_rms_norm(x, residual, *self._behind)
        opened = self._gate_up(x)
        x = opened.new_empty(opened.shape[0], opened.shape[1] // 2)
        torch.ops._C.silu_and_mul(x, opened)
        return self._down(x)

    def _attend(self, qkv: torch.Tensor, first: int, positions: torch.Tensor) -> torch.Tensor:
        """Return the attention output [N * T, H] of rows that attend up to their own positions."""
        num_queries, num_keys = self._num_heads * self._size, self._num_kv_heads * self._size
        count = 2 if first == 0 else 1
        stop, num_rows = first + count, qkv.shape[0] // count
        query, key = qkv[:, :num_queries], qkv[:, num_queries : num_queries + num_keys]
        if self._head_norms is not None:
            self._head_norms(qkv[:, : num_queries + num_keys])
        self._rotate(positions, query, key)  # in place
        kv = self.kv[:num_rows]
        new = qkv[:, num_queries:].view(num_rows, count, 2, self._num_kv_heads, self._size)
        kv[:, :, :, first:stop] = new.permute(0, 2, 3, 1, 4)
        query = query.view(num_rows, count, self._num_heads, self._size).transpose(1, 2)
        keys, values = kv[:, :, :, :stop].unbind(1)
        out = F.scaled_dot_product_attention(query, keys, values, is_causal=first == 0, enable_gqa=True)
        return out.transpose(1, 2).reshape(qkv.shape[0], num_queries)


class _HeadNorms:
    """Norms of queries and keys per head, computed together with each head's own weights."""

    def __init__(self, layer: Any):
        spec, (query, key) = layer.spec, (layer.q_norm.weight.data, layer.k_norm.weight.data)
        self._weights = torch.cat([query.repeat(spec.num_heads), key.repeat(spec.num_kv_heads)])
        self._size, self._plain = spec.head_dim, (torch.ones_like(query), spec.eps)

    def __call__(self, heads: torch.Tensor) -> None:
        """Normalise each head of the rows [N, heads * D] of a wider table, in place."""
        rows = heads.reshape(-1, self._size)
        normed = torch.empty_like(rows)
        torch.ops._C.rms_norm(normed, rows, *self._plain)
        torch.mul(normed.view_as(heads), self._weights, out=heads)


def _product(layer: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the product function that vLLM has chosen for `layer`."""
    multiply, weight, bias = vars(layer)["cpu_linear"], layer.weight, layer.bias
    return lambda x: multiply(x, weight, bias)


def _norm(layer: Any) -> Norm:
    return layer.weight.data, layer.variance_epsilon
