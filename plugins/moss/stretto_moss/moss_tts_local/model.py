"""Depth transformer with GPT-2's layers: LayerNorm, biases, and an MLP without a gate.

It runs on any device. Keys and values are in one buffer, as in `depth_transformer.py`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from vllm.model_executor.layers.linear import QKVParallelLinear, ReplicatedLinear
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.rotary_embedding import get_rope

from stretto.engine.models.depth_transformer import DepthWeights
from stretto.engine.models.latents import activate_rows
from stretto_moss.moss_tts_local.family import Gpt2Spec

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
}


class Gpt2Depth(DepthWeights):
    """Depth transformer with GPT-2's layers. The constructor takes the same arguments as `DepthWeights`."""

    def __init__(
        self,
        spec: Gpt2Spec,
        num_ids: Sequence[int],
        num_ends: int,
        width: int,
        quant_config: QuantizationConfig | None = None,
    ):
        super().__init__(spec, num_ids, num_ends, width, quant_config)
        self.num_positions = len(num_ids) + 1 - spec.num_first
        self.norm = nn.LayerNorm(spec.hidden, eps=spec.eps)
        self.rotary = get_rope(spec.head_dim, max_position=self.num_positions, rope_parameters=dict(spec.rope))
        self.layers = nn.ModuleList(
            _Layer(spec, quant_config, f"depth.layers.{layer}") for layer in range(spec.num_layers)
        )

    def prepare(self, max_rows: int) -> None:
        """Allocate the buffer for keys and values of batches of up to `max_rows` rows."""
        spec = self.spec
        like = self.embed
        self._kv = like.new_zeros(spec.num_layers, 2, max_rows, spec.num_kv_heads, self.num_positions, spec.head_dim)
        self._positions = torch.arange(self.num_positions, device=like.device)[:, None].repeat(1, max_rows)
        self._started = like.new_zeros(0)

    def start(self, hidden: torch.Tensor) -> torch.Tensor:
        """Process position 0 for hidden states [N, W]; return the states [N, H] that predict the first streams."""
        self._started = self._read(self.project(hidden), 0)
        return self._started

    def begin(self, hidden: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Return the states [N, H] that predict stream 1. If position 0 predicts it, too, `code` [N] is not read."""
        return self._started if self.spec.num_first == 2 else self.next(code, 1)

    def next(self, code: torch.Tensor, position: int) -> torch.Tensor:
        """Return states [N, H] that predict stream `position`, given the codes before it as rows of `embed`, [N]."""
        return self._read(F.embedding(code, self.embed), position + 1 - self.spec.num_first)

    def _read(self, x: torch.Tensor, position: int) -> torch.Tensor:
        positions = self._positions[position, : len(x)]
        for layer, kv in zip(self.layers, self._kv, strict=True):
            x = layer(x, kv, position, positions, self.rotary)
        return self.norm(x)


class _Layer(nn.Module):
    def __init__(self, spec: Gpt2Spec, quant_config: QuantizationConfig | None, prefix: str):
        super().__init__()
        self.spec = spec
        self._activate = ACTIVATIONS[spec.gpt2_activation]
        self._widths = [spec.num_heads * spec.head_dim, *[spec.num_kv_heads * spec.head_dim] * 2]
        heads = spec.head_dim, spec.num_heads, spec.num_kv_heads
        shared: dict[str, Any] = {"bias": True, "quant_config": quant_config, "return_bias": False}
        self.qkv_proj = QKVParallelLinear(spec.hidden, *heads, prefix=f"{prefix}.qkv_proj", disable_tp=True, **shared)
        self.o_proj = ReplicatedLinear(self._widths[0], spec.hidden, prefix=f"{prefix}.o_proj", **shared)
        self.fc_in = ReplicatedLinear(spec.hidden, spec.intermediate, prefix=f"{prefix}.fc_in", **shared)
        self.fc_out = ReplicatedLinear(spec.intermediate, spec.hidden, prefix=f"{prefix}.fc_out", **shared)
        self.ln_1, self.ln_2 = (nn.LayerNorm(spec.hidden, eps=spec.eps) for _ in range(2))

    def forward(
        self, x: torch.Tensor, kv: torch.Tensor, position: int, positions: torch.Tensor, rotary: nn.Module
    ) -> torch.Tensor:
        """Return the layer's output [N, H] after storing keys and values in `kv`, [2, max N, heads, positions, D]."""
        query, key, value = self.qkv_proj(self.ln_1(x)).split(self._widths, 1)
        query, key = rotary(positions, query.contiguous(), key.contiguous())
        query, key, value = (projected.reshape(len(x), -1, self.spec.head_dim) for projected in (query, key, value))
        keys, values = kv[:, : len(x)]
        keys[:, :, position] = key
        values[:, :, position] = value
        seen = keys[:, :, : position + 1], values[:, :, : position + 1]
        out = F.scaled_dot_product_attention(query[:, :, None], *seen, enable_gqa=True)
        x = x + self.o_proj(out.reshape(len(x), -1))
        return x + self.fc_out(activate_rows(self._activate, self.fc_in(self.ln_2(x))))
