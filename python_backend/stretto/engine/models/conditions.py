"""Conditions of a request in a Llama backbone: vectors added to all rows, and cross-attention to speaker vectors.

Keys and values of the speaker vectors are computed once per request, and stored by slot. All tables have fixed
addresses, as CUDA graphs require. On several tensor-parallel ranks, all of this is replicated.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.models.llama import LlamaDecoderLayer

from stretto.engine.kernels.gpu.cross_attention import cross_attend
from stretto.families.base import ConditionSpec

NORM_EPS = 1e-5  # of the norm before cross-attention, in the authors' code
MAX_PERIOD = 10_000.0  # of the positions of speaker vectors


def sine_positions(num_rows: int, width: int) -> torch.Tensor:
    """Return the positions that are added to projected speaker vectors: cosines, then sines, float32 [num_rows, width].

    They are computed as in the authors' `create_sin_embedding`.
    """
    half = width // 2
    places, frequencies = torch.arange(num_rows).float()[:, None], torch.arange(half).float()
    phase = places / torch.full((), MAX_PERIOD) ** (frequencies / (half - 1))
    return torch.cat([phase.cos(), phase.sin()], 1)


class Conditions(nn.Module):
    """Float32 weights that turn a request's condition into vectors, and the tables that hold these by slot.

    Args:
        spec: Sizes of the conditions.
        width: Width of the backbone, H.

    Attributes:
        sum: Table of the vectors that are added, [num_ids, H].
        project: Projection of speaker vectors, [H, vector_width].
        absent: Vector of absent speaker vectors, [H].
        sums: Sum of the added vectors by slot, [R, H].
        slots: Slot of each row of the step, int32 [max N].
        num_present: Number of speaker vectors by slot, int32 [R + 1].
    """

    def __init__(self, spec: ConditionSpec, width: int):
        super().__init__()
        self._spec = spec
        self.sum, self.project = _Table(spec.num_ids, width), _Table(width, spec.vector_width)
        self.absent = nn.Parameter(torch.empty(width, dtype=torch.float32), requires_grad=False)

    @torch.no_grad()
    def prepare(self, layers: Sequence["ConditionedLayer"], num_slots: int, max_rows: int, dtype: torch.dtype) -> None:
        """Allocate the tables, and compute the keys and values of absent speaker vectors.

        Args:
            layers: The backbone's layers.
            num_slots: Number of run slots, R.
            max_rows: Maximum number of rows in a step.
            dtype: Data type of the backbone.
        """
        device, num_rows, width = self.absent.device, self._spec.vector_rows, len(self.absent)
        self._layers, self._dtype = list(layers), dtype
        self._positions = sine_positions(num_rows, width).to(device)
        self.sums = torch.zeros(num_slots, width, dtype=dtype, device=device)
        self.slots = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self.num_present = torch.zeros(num_slots + 1, dtype=torch.int32, device=device)
        absent = (self.absent + self._positions).to(dtype)
        for layer in self._layers:
            layer.cross_attn.prepare(num_slots, self.slots, self.num_present, absent)

    @torch.no_grad()
    def place(self, slot: int, ids: torch.Tensor, vectors: torch.Tensor) -> None:
        """Store the condition of the request in `slot`.

        Args:
            slot: Run slot.
            ids: Rows of the table of vectors that are added, int64 [k].
            vectors: Speaker vectors, float32 [n, vector_width]; the remaining rows are absent.
        """
        self.sums[slot] = self.sum.weight[ids].sum(0).to(self._dtype)
        self.num_present[slot] = num_present = len(vectors)
        projected = F.linear(vectors, self.project.weight) + self._positions[:num_present]
        present = projected.to(self._dtype)
        for layer in self._layers:
            layer.cross_attn.place(slot, present)

    def add_to(self, embeds: torch.Tensor) -> torch.Tensor:
        """Add the vectors of each row's request to the embeddings [N, H], in place."""
        return embeds.add_(F.embedding(self.slots[: len(embeds)], self.sums))


class _Table(nn.Module):
    def __init__(self, num_rows: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_rows, width, dtype=torch.float32), requires_grad=False)


class CrossAttention(nn.Module):
    """Attention of a layer to the speaker vectors of each row's request, present or absent, without positions.

    Attributes:
        keys: Keys by slot, [R + 1, heads, rows, D]; the last entry contains only absent vectors.
        values: Values, like `keys`.
        slots: See `Conditions`.
        num_present: See `Conditions`.
    """

    keys: torch.Tensor
    values: torch.Tensor
    slots: torch.Tensor
    num_present: torch.Tensor

    def __init__(self, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        config: Any = vllm_config.model_config.hf_config
        width, self._num_heads = config.hidden_size, config.num_attention_heads
        shared: dict[str, Any] = {"bias": False, "quant_config": vllm_config.quant_config, "return_bias": False}
        self.query_proj = ReplicatedLinear(width, width, prefix=f"{prefix}.query_proj", **shared)
        self.kv_proj = ReplicatedLinear(width, 2 * width, prefix=f"{prefix}.kv_proj", **shared)
        self.o_proj = ReplicatedLinear(width, width, prefix=f"{prefix}.o_proj", **shared)

    def prepare(self, num_slots: int, slots: torch.Tensor, num_present: torch.Tensor, absent: torch.Tensor) -> None:
        """Allocate the tables, and fill them with the keys and values of absent vectors.

        Args:
            num_slots: Number of run slots, R.
            slots: See `Conditions`.
            num_present: See `Conditions`.
            absent: Absent speaker vectors with their positions, [rows, H].
        """
        num_rows, width = absent.shape
        shape = num_slots + 1, self._num_heads, num_rows, width // self._num_heads
        tables = {"keys": absent.new_empty(shape), "values": absent.new_empty(shape)}
        for name, table in {**tables, "slots": slots, "num_present": num_present}.items():
            self.register_buffer(name, table, persistent=False)
        for table, of_absent in zip((self.keys, self.values), self._by_head(absent), strict=True):
            table[:] = of_absent

    def place(self, slot: int, vectors: torch.Tensor) -> None:
        """Store the keys and values of a request's speaker vectors [n, H], and of absent vectors in the other rows."""
        num_present = len(vectors)
        for table in (self.keys, self.values):
            table[slot, :, num_present:] = table[-1, :, num_present:]
        if num_present:
            self.keys[slot, :, :num_present], self.values[slot, :, :num_present] = self._by_head(vectors)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the output of attention for the rows of the step, [N, H]."""
        query = self.query_proj(hidden)
        return self.o_proj(cross_attend(query, self.keys, self.values, self.slots, self.num_present))

    def _by_head(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the keys and the values of vectors [n, H], [2, heads, n, D]."""
        return self.kv_proj(vectors).unflatten(1, (2, self._num_heads, -1)).permute(1, 2, 0, 3)


class ConditionedLayer(LlamaDecoderLayer):
    """Llama layer with cross-attention between self-attention and MLP."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "", **more: Any):
        super().__init__(vllm_config, prefix, **more)
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
