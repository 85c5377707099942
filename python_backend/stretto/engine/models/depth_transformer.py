"""Depth transformer: a few layers over the codebooks of one frame, replicated on every rank.

Its weights are either shared by all codebooks or selected per codebook.

Keys and values are stored in one buffer, which is allocated once and overwritten for every frame. Each step therefore
launches the same kernels with the same addresses, as CUDA graphs require.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, ReplicatedLinear
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from stretto.families.base import DepthSpec

# Checkpoint parts of fused layers: (fused layer, part).
FUSED: dict[str, tuple[str, str | int]] = {
    **{f"{part}_proj": ("qkv_proj", part) for part in "qkv"},
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}


def _weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape), requires_grad=False)


class DepthWeights(nn.Module):
    """Input projection, embeddings and heads of a depth transformer.

    In shapes, S is the number of streams, C0 the number of ids of stream 0, C the number of codes of each other stream,
    E the number of end ids of stream 0, X the number of ids of the second text stream that position 0 reads
    (`DepthSpec.num_second_ids`), W the width of the backbone, H the width of these layers, and M the number of weight
    sets (at least 1).

    Args:
        spec: Sizes of the layers.
        num_ids: Number of ids of each stream: C0, then C for each of the S - 1 other streams.
        num_ends: Number of end ids of stream 0, E.
        width: Width of the backbone, W.
        quant_config: Quantization of the linear layers; embeddings and heads are not quantized.

    Attributes:
        first_head: Head of stream 0, applied to the backbone's hidden state, [C0 + E, W], or to the output of position
            0, [C0 + E, H] (`DepthSpec.num_first`).
        project: Projections of the backbone's hidden state, [M * H, W]; the identity for some models.
        embed: Embeddings of the ids of streams 0 to S - 2, then of the second text stream, [C0 + (S - 2) * C + X, H].
        heads: Heads of streams 1 to S - 1, [S - 1, C, H].
    """

    def __init__(
        self,
        spec: DepthSpec,
        num_ids: Sequence[int],
        num_ends: int,
        width: int,
        quant_config: QuantizationConfig | None = None,
    ):
        super().__init__()
        self.spec = spec
        self.first_head = _weight(num_ids[0] + num_ends, spec.hidden if spec.num_first else width)
        project = width, max(spec.num_sets, 1) * spec.hidden, quant_config, "depth.project"
        self.project = _linear(*project, bias=spec.projection == "biased") if spec.projection else nn.Identity()
        self.embed = _weight(sum(num_ids[:-1]) + spec.num_second_ids, spec.hidden)
        self.heads = _weight(len(num_ids) - 1, num_ids[-1], spec.hidden)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load weights by checkpoint name, and return the names of the loaded parameters.

        Checkpoints have separate query, key and value (and gate and up) projections, which are fused here. A quantized
        layer has several tensors, for example `qweight`, `qzeros` and `scales`.
        """
        parameters, loaded = dict(self.named_parameters()), set[str]()
        for name, tensor in weights:
            layer, _, kind = name.rpartition(".")
            path, _, part = layer.rpartition(".")
            fused, shard = FUSED.get(part, (part, None))
            target = f"{path}.{fused}.{kind}" if part in FUSED else name
            if target not in parameters:
                raise ValueError(f"unknown tensor depth.{name}")
            load: Callable[..., None] = getattr(parameters[target], "weight_loader", default_weight_loader)
            load(parameters[target], tensor, *([] if shard is None else [shard]))
            loaded.add(target)
        return loaded


class DepthTransformer(DepthWeights):
    """Depth transformer whose positions share one set of weights.

    The constructor takes the same arguments as `DepthWeights`.
    """

    def __init__(
        self,
        spec: DepthSpec,
        num_ids: Sequence[int],
        num_ends: int,
        width: int,
        quant_config: QuantizationConfig | None = None,
    ):
        super().__init__(spec, num_ids, num_ends, width, quant_config)
        self.num_positions = num_positions = len(num_ids)
        self.norm = RMSNorm(spec.hidden, eps=spec.eps)
        self.rotary = get_rope(spec.head_dim, max_position=num_positions, rope_parameters=dict(spec.rope))
        self.layers = nn.ModuleList(
            _Layer(spec, quant_config, f"depth.layers.{layer}") for layer in range(spec.num_layers)
        )

    def prepare(self, max_rows: int) -> None:
        """Allocate the buffer for keys and values of batches of up to `max_rows` rows."""
        spec, like = self.spec, self.embed
        shape = spec.num_layers, 2, max_rows, spec.num_kv_heads, self.num_positions, spec.head_dim
        self._kv = like.new_zeros(shape)
        self._positions = torch.arange(self.num_positions, device=like.device)[:, None].repeat(1, max_rows)
        self._first_positions = self._positions[:2].T.reshape(-1).contiguous()

    def start(self, hidden: torch.Tensor) -> torch.Tensor:
        """Process position 0 of a frame; return the states [N, H] that predict stream 0 (`DepthSpec.num_first`).

        Args:
            hidden: The backbone's hidden states, [N, W]; unchanged.
        """
        x = self.project(hidden)
        return self._read(x.clone() if x is hidden else x, 0, self._positions[0, : len(hidden)])

    def begin(self, hidden: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Process positions 0 and 1 of a frame; return the states [N, H] that predict stream 1's codes.

        After `start`, only position 1 is left.

        Args:
            hidden: The backbone's hidden states, [N, W].
            code: Codes of stream 0, as rows of `embed`, [N].
        """
        if self.spec.num_first:
            return self.next(code, 1)
        x = torch.stack([self.project(hidden), F.embedding(code, self.embed)], 1)
        return self._read(x.flatten(0, 1), 0, self._first_positions[: 2 * len(hidden)])[1::2]

    def next(self, code: torch.Tensor, position: int) -> torch.Tensor:
        """Process one position of a frame; return the states [N, H] that predict the next stream's codes.

        The next stream is stream `position`.

        Args:
            code: Codes of stream `position` - 1, as rows of `embed`, [N].
            position: Position in the frame, from 2.
        """
        return self._read(F.embedding(code, self.embed), position, self._positions[position, : len(code)])

    def _read(self, x: torch.Tensor, first: int, positions: torch.Tensor) -> torch.Tensor:
        """Return the output of all layers, [N * T, H].

        Args:
            x: Inputs at T consecutive positions of each row, [N * T, H], grouped by row.
            first: First position.
            positions: Rotary positions, [N * T].
        """
        residual = torch.zeros_like(x)
        for layer, kv in zip(self.layers, self._kv, strict=True):
            x, residual = layer(x, residual, kv, first, positions, self.rotary)
        return self.norm(x, residual)[0]


class SteppedDepth(DepthWeights):
    """Weights of a depth transformer that has a set of weights per position (`DepthSpec.schedule`).

    All sets share a layer's norms. `HostSteppedDepth` and `DeviceSteppedDepth` run the layers.
    """

    def __init__(
        self,
        spec: DepthSpec,
        num_ids: Sequence[int],
        num_ends: int,
        width: int,
        quant_config: QuantizationConfig | None = None,
    ):
        super().__init__(spec, num_ids, num_ends, width, quant_config)
        self.num_positions = len(num_ids) - 1
        if len(spec.schedule) != self.num_positions:
            raise ValueError(f"depth transformer: expected {self.num_positions} sets in the schedule, got {spec}")
        self.layers = nn.ModuleList(
            _SteppedLayer(spec, quant_config, f"depth.layers.{layer}") for layer in range(spec.num_layers)
        )

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load weights by checkpoint name; attention weights of all sets may be in one tensor."""

        def by_set() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                layer, _, part = name.removesuffix(".weight").rpartition(".")
                if part in ("qkv_proj", "o_proj") and ".sets." not in name:
                    parts = enumerate(tensor.chunk(self.spec.num_sets))
                    yield from ((f"{layer}.sets.{index}.{part}.weight", own) for index, own in parts)
                else:
                    yield name, tensor

        return super().load_weights(by_set())


class _SteppedLayer(nn.Module):
    def __init__(self, spec: DepthSpec, quant_config: QuantizationConfig | None, prefix: str):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (RMSNorm(spec.hidden, eps=spec.eps) for _ in range(2))
        self.sets = nn.ModuleList(
            _Projections(spec, quant_config, f"{prefix}.sets.{index}") for index in range(spec.num_sets)
        )


class _Projections(nn.Module):
    """Linear layers of a layer's attention and MLP."""

    def __init__(self, spec: DepthSpec, quant_config: QuantizationConfig | None, prefix: str):
        super().__init__()
        self.spec = spec
        self._widths = [spec.num_heads * spec.head_dim, *[spec.num_kv_heads * spec.head_dim] * 2]
        heads = spec.head_dim, spec.num_heads, spec.num_kv_heads
        fused: dict[str, Any] = {"bias": False, "quant_config": quant_config, "return_bias": False, "disable_tp": True}
        self.qkv_proj = QKVParallelLinear(spec.hidden, *heads, prefix=f"{prefix}.qkv_proj", **fused)
        self.o_proj = _linear(self._widths[0], spec.hidden, quant_config, f"{prefix}.o_proj")
        self.gate_up_proj = MergedColumnParallelLinear(
            spec.hidden, [spec.intermediate] * 2, prefix=f"{prefix}.gate_up_proj", **fused
        )
        self.down_proj = _linear(spec.intermediate, spec.hidden, quant_config, f"{prefix}.down_proj")


class _Layer(_Projections):
    def __init__(self, spec: DepthSpec, quant_config: QuantizationConfig | None, prefix: str):
        super().__init__(spec, quant_config, prefix)
        self.input_layernorm, self.post_attention_layernorm = (RMSNorm(spec.hidden, eps=spec.eps) for _ in range(2))
        if spec.has_head_norms:
            self.q_norm, self.k_norm = (RMSNorm(spec.head_dim, eps=spec.eps) for _ in range(2))

    def forward(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        kv: torch.Tensor,
        first: int,
        positions: torch.Tensor,
        rotary: nn.Module,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the layer's output and the residual.

        Keys and values are stored in `kv`, [2, max N, heads, positions, D].
        """
        x, residual = self.input_layernorm(x, residual)
        query, key, value = self.qkv_proj(x).split(self._widths, 1)
        if self.spec.has_head_norms:
            query, key = self._by_head(self.q_norm, query), self._by_head(self.k_norm, key)
        query, key = rotary(positions, query, key)
        x = self.o_proj(self._attend(query, key, value, kv, first))
        x, residual = self.post_attention_layernorm(x, residual)
        gate, up = self.gate_up_proj(x).chunk(2, 1)
        return self.down_proj(F.silu(gate) * up), residual

    def _by_head(self, norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return norm(x.reshape(len(x), -1, self.spec.head_dim)).flatten(1)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kv: torch.Tensor, first: int
    ) -> torch.Tensor:
        count = 2 if first == 0 and not self.spec.num_first else 1
        query, key, value = (
            each.reshape(len(each) // count, count, -1, self.spec.head_dim).transpose(1, 2)
            for each in (query, key, value)
        )
        stop = first + count
        keys, values = kv[:, : len(query)]
        keys[:, :, first:stop], values[:, :, first:stop] = key, value
        seen = keys[:, :, :stop], values[:, :, :stop]
        out = F.scaled_dot_product_attention(query, *seen, is_causal=count > 1, enable_gqa=True)
        return out.transpose(1, 2).reshape(len(query) * count, -1)


def _linear(
    num_in: int, num_out: int, quant_config: QuantizationConfig | None, prefix: str, bias: bool = False
) -> ReplicatedLinear:
    return ReplicatedLinear(num_in, num_out, bias=bias, quant_config=quant_config, prefix=prefix, return_bias=False)
