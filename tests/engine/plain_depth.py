"""Depth transformer whose positions share their weights, computed by torch and vLLM's layers, as a reference."""

from typing import Any

import torch
import torch.nn.functional as F


class PlainDepth:
    """Interface of `CpuDepth` and `DeviceDepth` over the weights of a `DepthTransformer`."""

    def __init__(self, depth: Any):
        self.heads: torch.Tensor = depth.heads
        self._depth, self._spec, self._embed = depth, depth.spec, depth.embed.data

    def prepare(self, max_rows: int) -> None:
        spec = self._spec
        shape = spec.num_layers, 2, max_rows, spec.num_kv_heads, self._depth.num_positions, spec.head_dim
        self._kv = self._embed.new_zeros(shape)

    def start(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._read(self._depth.project(hidden)[:, None].clone(), 0)

    def begin(self, hidden: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        if self._spec.num_first:
            return self.next(code, 1)
        return self._read(torch.stack([self._depth.project(hidden), F.embedding(code, self._embed)], 1), 0)

    def next(self, code: torch.Tensor, position: int) -> torch.Tensor:
        return self._read(F.embedding(code, self._embed)[:, None], position)

    def _read(self, x: torch.Tensor, first: int) -> torch.Tensor:
        """Return the output [N, H] for the last of T positions from `first`, whose inputs are `x` [N, T, H]."""
        num_rows, count, _ = x.shape
        positions = torch.arange(first, first + count, device=x.device).repeat(num_rows)
        x = x.flatten(0, 1)
        residual = torch.zeros_like(x)
        for layer, kv in zip(self._depth.layers, self._kv, strict=True):
            x, residual = layer.input_layernorm(x, residual)
            x = layer.o_proj(self._attended(layer, layer.qkv_proj(x), kv, positions, first, count))
            x, residual = layer.post_attention_layernorm(x, residual)
            gate, up = layer.gate_up_proj(x).chunk(2, 1)
            x = layer.down_proj(F.silu(gate) * up)
        return self._depth.norm(x, residual)[0].view(num_rows, count, -1)[:, -1]

    def _attended(
        self, layer: Any, qkv: torch.Tensor, kv: torch.Tensor, positions: torch.Tensor, first: int, count: int
    ) -> torch.Tensor:
        spec = self._spec
        sizes = [heads * spec.head_dim for heads in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)]
        query, key, value = qkv.split(sizes, 1)
        if spec.has_head_norms:
            query, key = (
                norm(each.reshape(len(each), -1, spec.head_dim)).flatten(1)
                for norm, each in ((layer.q_norm, query), (layer.k_norm, key))
            )
        query, key = self._depth.rotary(positions, query, key)
        query, key, value = (
            each.reshape(len(each) // count, count, -1, spec.head_dim).transpose(1, 2) for each in (query, key, value)
        )
        keys, values = kv[:, : len(query)]
        keys[:, :, first : first + count], values[:, :, first : first + count] = key, value
        seen = keys[:, :, : first + count], values[:, :, : first + count]
        out = F.scaled_dot_product_attention(query, *seen, is_causal=count > 1, enable_gqa=True)
        return out.transpose(1, 2).reshape(len(qkv), -1)
