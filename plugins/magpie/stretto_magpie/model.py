"""Local transformer, which samples the codes of a row one after the other.

Position 0 reads the decoder's hidden state, and position p code p - 1. Learnt positions are parts of the tables here.
Keys and values are in one buffer, as in `stretto.engine.models.depth_transformer`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from stretto.engine.models.depth_transformer import DepthWeights
from stretto.engine.models.latents import activate_rows
from stretto_magpie.family import BIAS_COLUMNS, LocalSpec

gelu = partial(F.gelu, approximate="tanh")


def gelu_rows(x: torch.Tensor) -> torch.Tensor:
    """Return GELU of x [N, H]. The result for a row is bit-identical in every batch."""
    return activate_rows(gelu, x)


def _weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape), requires_grad=False)


class LocalTransformer(DepthWeights):
    """Depth transformer whose position 0 does not read stream 0. The constructor takes `DepthWeights`' arguments.

    In shapes, K is the number of codes of a row, and C the number of ids of each, with the end id.

    Attributes:
        first_head: Heads of all codes on the decoder's hidden state, used only to detect the end, [K * C, W].
        stop_bias: Their biases, [K * C].
        start: Vector that is added to the projected hidden state, [H].
        embed: Embeddings of all codes but the last, without end ids, [(K - 1) * (C - 1), H].
        heads: Heads of the codes, [K, C, H + BIAS_COLUMNS].
    """

    def __init__(
        self,
        spec: LocalSpec,
        num_ids: Sequence[int],
        num_ends: int,
        width: int,
        quant_config: QuantizationConfig | None = None,
    ):
        super().__init__(spec, num_ids, num_ends, width, quant_config)
        self._num_first, *sizes = num_ids
        self.num_positions = num_codes = len(sizes)
        num_columns = sizes[0] + 1
        self.first_head = _weight(num_codes * num_columns, width)
        self.stop_bias = _weight(num_codes * num_columns)
        self.start = _weight(spec.hidden)
        self.embed = _weight((num_codes - 1) * sizes[0], spec.hidden)
        self.heads = _weight(num_codes, num_columns, spec.hidden + BIAS_COLUMNS)
        self.layers = nn.ModuleList(
            _Layer(spec, quant_config, f"depth.layers.{layer}") for layer in range(spec.num_layers)
        )

    def prepare(self, max_rows: int) -> None:
        """Allocate the buffer for keys and values of batches of up to `max_rows` rows."""
        spec = self.spec
        self._kv = self.embed.new_zeros(spec.num_layers, 2, max_rows, spec.num_heads, self.num_positions, spec.head_dim)

    def begin(self, hidden: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Return the states [N, H + BIAS_COLUMNS] that predict the first code, given hidden states [N, W]."""
        return self._read(self.project(hidden) + self.start, 0)

    def next(self, code: torch.Tensor, position: int) -> torch.Tensor:
        """Return the states that predict the code of stream `position`, [N, H + BIAS_COLUMNS].

        Args:
            code: Codes of stream `position` - 1, as rows of a table that begins with those of stream 0, [N]. An end id
                may be outside the table, because it ends the reply, and the row's other codes are not used.
        """
        rows = (code - self._num_first).clamp(max=len(self.embed) - 1)
        return self._read(F.embedding(rows, self.embed), position - 1)

    def _read(self, x: torch.Tensor, position: int) -> torch.Tensor:
        for layer, kv in zip(self.layers, self._kv, strict=True):
            x = layer(x, kv, position)
        return torch.cat([x, x.new_ones(len(x), 1), x.new_zeros(len(x), BIAS_COLUMNS - 1)], 1)


class _Layer(nn.Module):
    def __init__(self, spec: LocalSpec, quant_config: QuantizationConfig | None, prefix: str):
        super().__init__()
        self.spec = spec
        width = spec.num_heads * spec.head_dim
        shared: dict[str, Any] = {"bias": False, "quant_config": quant_config, "return_bias": False}
        self.attn_proj = ReplicatedLinear(spec.hidden, 3 * width, prefix=f"{prefix}.attn_proj", **shared)
        self.o_proj = ReplicatedLinear(width, spec.hidden, prefix=f"{prefix}.o_proj", **shared)
        self.fc_in = ReplicatedLinear(spec.hidden, spec.intermediate, prefix=f"{prefix}.fc_in", **shared)
        self.fc_out = ReplicatedLinear(spec.intermediate, spec.hidden, prefix=f"{prefix}.fc_out", **shared)
        self.ln_1 = nn.LayerNorm(spec.hidden, eps=spec.eps, bias=False)
        self.ln_2 = nn.LayerNorm(spec.hidden, eps=spec.eps, bias=False)

    def forward(self, x: torch.Tensor, kv: torch.Tensor, position: int) -> torch.Tensor:
        """Return the layer's output [N, H]. Keys and values are stored in `kv`, [2, max N, heads, positions, D]."""
        heads = self.attn_proj(self.ln_1(x)).view(len(x), 3, self.spec.num_heads, self.spec.head_dim)
        query, key, value = heads.unbind(1)
        keys, values = kv[:, : len(x)]
        keys[:, :, position] = key
        values[:, :, position] = value
        keys = keys[:, :, : position + 1]
        values = values[:, :, : position + 1]
        attended = F.scaled_dot_product_attention(query[:, :, None], keys, values)
        x = x + self.o_proj(attended.reshape(len(x), -1))
        return x + self.fc_out(gelu_rows(self.fc_in(self.ln_2(x))))
