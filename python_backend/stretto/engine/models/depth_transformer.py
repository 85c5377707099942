"""Weights of a depth transformer: a few layers over the codebooks of one frame, replicated on every rank.

`cpu_backend/depth.py` and `kernels/gpu/depth.py` run the layers. Their keys and values are in one buffer, which is
overwritten for every frame. Each step therefore launches the same kernels with the same addresses, as CUDA graphs
require.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, ReplicatedLinear
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from stretto.family.base import DepthSpec

# Checkpoint parts of fused layers: (fused layer, part).
FUSED: dict[str, tuple[str, str | int]] = {
    **{f"{letter}_proj": ("qkv_proj", letter) for letter in "qkv"},
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}


def _weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape), requires_grad=False)


class DepthWeights(nn.Module):
    """Input projection, embeddings and heads of a depth transformer.

    In shapes, S is the number of streams. C0 and E are the numbers of ids and end ids of stream 0, and C is the number
    of codes of each other stream. X is the number of ids of the second text stream that position 0 reads
    (`DepthSpec.num_second_ids`). W and H are the widths of the backbone and of these layers, and M is the number of
    weight sets (at least 1).

    Args:
        num_ids: Number of ids of each stream: C0, then C for each of the S - 1 other streams.
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
        parameters = dict(self.named_parameters())
        loaded = set[str]()
        for name, tensor in weights:
            layer, _, tensor_name = name.rpartition(".")
            path, _, module_name = layer.rpartition(".")
            fused, shard = FUSED.get(module_name, (module_name, None))
            target = f"{path}.{fused}.{tensor_name}" if module_name in FUSED else name
            if target not in parameters:
                raise ValueError(f"unknown tensor depth.{name}")
            load: Callable[..., None] = getattr(parameters[target], "weight_loader", default_weight_loader)
            load(parameters[target], tensor, *([] if shard is None else [shard]))
            loaded.add(target)
        return loaded


class DepthTransformer(DepthWeights):
    """Weights of a depth transformer whose positions share one set of them; `CpuDepth` and `DeviceDepth` run it."""

    def __init__(
        self,
        spec: DepthSpec,
        num_ids: Sequence[int],
        num_ends: int,
        width: int,
        quant_config: QuantizationConfig | None = None,
    ):
        super().__init__(spec, num_ids, num_ends, width, quant_config)
        self.num_positions = len(num_ids)
        self.norm = RMSNorm(spec.hidden, eps=spec.eps)
        self.rotary = get_rope(spec.head_dim, max_position=self.num_positions, rope_parameters=dict(spec.rope))
        self.layers = nn.ModuleList(
            _Layer(spec, quant_config, f"depth.layers.{layer}") for layer in range(spec.num_layers)
        )


class SteppedDepth(DepthWeights):
    """Weights of a depth transformer that has a set of weights per position (`DepthSpec.schedule`).

    All sets share a layer's norms. `CpuSteppedDepth` and `DeviceSteppedDepth` run the layers.
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
                layer, _, projection = name.removesuffix(".weight").rpartition(".")
                if projection in ("qkv_proj", "o_proj") and ".sets." not in name:
                    parts = enumerate(tensor.chunk(self.spec.num_sets))
                    yield from (
                        (f"{layer}.sets.{index}.{projection}.weight", set_weight) for index, set_weight in parts
                    )
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
        heads = spec.head_dim, spec.num_heads, spec.num_kv_heads
        fused: dict[str, Any] = {"bias": False, "quant_config": quant_config, "return_bias": False, "disable_tp": True}
        self.qkv_proj = QKVParallelLinear(spec.hidden, *heads, prefix=f"{prefix}.qkv_proj", **fused)
        self.o_proj = _linear(spec.num_heads * spec.head_dim, spec.hidden, quant_config, f"{prefix}.o_proj")
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


def _linear(
    num_in: int, num_out: int, quant_config: QuantizationConfig | None, prefix: str, bias: bool = False
) -> ReplicatedLinear:
    return ReplicatedLinear(num_in, num_out, bias=bias, quant_config=quant_config, prefix=prefix, return_bias=False)
