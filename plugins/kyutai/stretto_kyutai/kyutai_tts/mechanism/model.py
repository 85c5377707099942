"""Conditions of a request in Llama: vectors added to all rows, and cross-attention to speaker vectors.

Keys and values of the speaker vectors are computed once per request, and stored by slot. All tables have fixed
addresses, as CUDA graphs require. On several tensor-parallel ranks, all of this is replicated.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from vllm import envs
from vllm.config import VllmConfig
from vllm.model_executor.determinism.batch_invariant import linear_batch_invariant
from vllm.model_executor.layers.linear import ReplicatedLinear, UnquantizedLinearMethod
from vllm.model_executor.models.llama import LlamaDecoderLayer

from stretto.engine.worker.slots import Arrays
from stretto.records.prompt import Condition
from stretto_kyutai.kyutai_tts.mechanism.cross_attention import cross_attend
from stretto_kyutai.kyutai_tts.mechanism.speakers import SpeakerConditions

NORM_EPS = 1e-5  # of the norm before cross-attention, in the authors' code
MAX_PERIOD = 10_000.0  # of the positions of speaker vectors


def sine_positions(num_rows: int, width: int) -> torch.Tensor:
    """Return the positions of speaker vectors, as in the authors' `create_sin_embedding`, float32 [rows, width]."""
    half = width // 2
    places = torch.arange(num_rows).float()[:, None]
    frequencies = torch.arange(half).float()
    phase = places / torch.full((), MAX_PERIOD) ** (frequencies / (half - 1))
    return torch.cat([phase.cos(), phase.sin()], 1)


class Conditions(nn.Module):
    """Float32 weights that turn a request's condition into vectors, and the tables that hold these by slot.

    Attributes:
        sum: Table of the vectors that are added, [num_ids, H].
        project: Projection of speaker vectors, [H, vector_width].
        absent: Vector of absent speaker vectors, [H].
        sums: Sum of the added vectors by slot, [R, H].
        slots: Slot of each row of the step, int32 [max N].
        num_present: Number of speaker vectors by slot, int32 [R + 1].
    """

    def __init__(self, spec: SpeakerConditions, width: int):
        super().__init__()
        self._spec = spec
        self._none = Condition((), np.zeros((0, spec.vector_width), np.float32))
        self.sum = _Table(spec.num_ids, width)
        self.project = _Table(width, spec.vector_width)
        self.absent = nn.Parameter(torch.empty(width, dtype=torch.float32), requires_grad=False)

    @torch.no_grad()
    def prepare(self, layers: Sequence["ConditionedLayer"], num_slots: int, max_rows: int, dtype: torch.dtype) -> None:
        """Allocate the tables, and compute the keys and values of absent speaker vectors."""
        device = self.absent.device
        num_rows = self._spec.vector_rows
        width = len(self.absent)
        self._attentions = [layer.cross_attn for layer in layers]
        self._dtype = dtype
        self._positions = sine_positions(num_rows, width).to(device)
        self.sums = torch.zeros(num_slots, width, dtype=dtype, device=device)
        self.slots = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self.num_present = torch.zeros(num_slots + 1, dtype=torch.int32, device=device)
        # On a CPU, vLLM has prepared the weights of each layer. Elsewhere, one product has fewer launches.
        self._weights = None if device.type == "cpu" else stacked_weights(self._attentions)
        num_heads = self._attentions[0].num_heads
        shape = 2, len(self._attentions), num_slots + 1, num_heads, num_rows, width // num_heads
        self._tables = tables = torch.empty(shape, dtype=dtype, device=device)
        self._project((self.absent + self._positions).to(dtype), tables[:, :, -1])
        tables[:, :, :-1] = tables[:, :, -1:]
        for attention, keys, values in zip(self._attentions, *tables, strict=True):
            attention.prepare(keys, values, self.slots, self.num_present)

    def fill_slot(self, slot: int, condition: Condition | None, arrays: Arrays) -> None:
        """Store the condition of the request in `slot`."""
        stored = condition or self._none
        ids = arrays.upload(np.array(stored.ids, np.int64))
        vectors = arrays.upload(stored.vectors.copy())  # torch warns about the received buffer, which is read-only
        self.store(slot, arrays.tensor(ids), arrays.tensor(vectors))

    def fill(self, slots: torch.Tensor, rows: torch.Tensor) -> None:
        """Record the slot of each row of a step, int [N]."""
        self.slots[: len(slots)].copy_(slots)

    @torch.no_grad()
    def store(self, slot: int, ids: torch.Tensor, vectors: torch.Tensor) -> None:
        """Store the vectors of the request in `slot`.

        Args:
            ids: Rows of the table of vectors that are added, int64 [k].
            vectors: Speaker vectors, float32 [n, vector_width]; the remaining rows are absent.
        """
        self.sums[slot] = self.sum.weight[ids].sum(0).to(self._dtype)
        self.num_present[slot] = num_present = len(vectors)
        projected = F.linear(vectors, self.project.weight) + self._positions[:num_present]
        tables = self._tables
        tables[:, :, slot, :, num_present:] = tables[:, :, -1, :, num_present:]
        if num_present:
            self._project(projected.to(self._dtype), tables[:, :, slot, :, :num_present])

    def add_to(self, embeds: torch.Tensor) -> torch.Tensor:
        """Add the vectors of each row's request to the embeddings [N, H], in place."""
        return embeds.add_(F.embedding(self.slots[: len(embeds)], self.sums))

    def _project(self, vectors: torch.Tensor, out: torch.Tensor) -> None:
        """Write the keys and values of vectors [n, H] in all layers to `out` [2, layers, heads, n, D]."""
        if self._weights is None:
            for attention, table in zip(self._attentions, out.unbind(1), strict=True):
                table[:] = attention.kv_proj(vectors).unflatten(1, (2, attention.num_heads, -1)).permute(1, 2, 0, 3)
            return
        multiply: Any = linear_batch_invariant if envs.VLLM_BATCH_INVARIANT else F.linear
        by_layer = multiply(vectors, self._weights).unflatten(1, (out.shape[1], 2, out.shape[2], -1))
        out[:] = by_layer.permute(2, 1, 3, 0, 4)


def stacked_weights(attentions: Sequence["CrossAttention"]) -> torch.Tensor | None:
    """Return the weights of keys and values of all layers, [layers * 2 H, H]; None if they are quantized.

    The layers share the memory of the result.
    """
    projections = [attention.kv_proj for attention in attentions]
    if any(type(projection.quant_method) is not UnquantizedLinearMethod for projection in projections):
        return None
    stacked = torch.cat([projection.get_parameter("weight").data for projection in projections])
    for projection, weight in zip(projections, stacked.chunk(len(projections)), strict=True):
        projection.get_parameter("weight").data = weight
    return stacked


class _Table(nn.Module):
    def __init__(self, num_rows: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_rows, width, dtype=torch.float32), requires_grad=False)


class CrossAttention(nn.Module):
    """Attention of a layer to the speaker vectors of each row's request, present or absent, without positions.

    `keys` and `values`, by slot, are [R + 1, heads, rows, D]; the last entry contains only absent vectors.
    """

    keys: torch.Tensor
    values: torch.Tensor
    slots: torch.Tensor
    num_present: torch.Tensor

    def __init__(self, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        config: Any = vllm_config.model_config.hf_config
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        shared: dict[str, Any] = {"bias": False, "quant_config": vllm_config.quant_config, "return_bias": False}
        self.query_proj = ReplicatedLinear(width, width, prefix=f"{prefix}.query_proj", **shared)
        self.kv_proj = ReplicatedLinear(width, 2 * width, prefix=f"{prefix}.kv_proj", **shared)
        self.o_proj = ReplicatedLinear(width, width, prefix=f"{prefix}.o_proj", **shared)

    def prepare(self, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, num_present: torch.Tensor) -> None:
        """Set the tables; for `slots` and `num_present`, see `Conditions`."""
        tables = {"keys": keys, "values": values, "slots": slots, "num_present": num_present}
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the output of attention for the rows of the step, [N, H]."""
        query = self.query_proj(hidden)
        return self.o_proj(cross_attend(query, self.keys, self.values, self.slots, self.num_present))


class ConditionedLayer(LlamaDecoderLayer):
    """Llama layer with cross-attention between self-attention and MLP."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "", **options: Any):
        super().__init__(vllm_config, prefix, **options)
        self.cross_norm = nn.LayerNorm(self.hidden_size, eps=NORM_EPS)
        self.cross_attn = CrossAttention(vllm_config, f"{prefix}.cross_attn")

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output of the MLP and the residual, [N, H] each."""
        if residual is None:
            residual = hidden_states
            hidden_states = self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        residual = residual + self.self_attn(positions=positions, hidden_states=hidden_states)
        hidden_states = self.cross_attn(self.cross_norm(residual))
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


def layer(spec: SpeakerConditions) -> type[ConditionedLayer]:
    """Return the class of the backbone's layers (`RequestConditions.layer`)."""
    return ConditionedLayer
