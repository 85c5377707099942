"""Decoder layers with learnt positions and attention to the request's text, and the text encoder.

A text is encoded when its request gets a slot. The keys and values that the decoder's layers read are stored by slot,
in tables at fixed addresses, as CUDA graphs require. On several tensor-parallel ranks, all of this is replicated.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ColumnParallelLinear, ReplicatedLinear, RowParallelLinear
from vllm.model_executor.models.llama import LlamaDecoderLayer

from stretto.engine.worker.slots import Arrays
from stretto.records.prompt import Condition
from stretto_magpie.family import NORM_EPS, EncoderSpec, PriorSpec, TextConditions
from stretto_magpie.mechanism.text_attention import attend
from stretto_magpie.model import gelu, gelu_rows


def _weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape), requires_grad=False)


class TextNetwork(nn.Module):
    """Encoder of texts, and the tables of their keys and values by slot.

    Attributes:
        embed: Embeddings of the tokens, [V, H].
        positions: Embeddings of the positions, [T, H].
        slots: Slot of each row of the step, int32 [max N]; R for rows that are not used, or of unconditional requests.
        attended: Id of stream 0 of each row, around which the prior of its attention is centred, int32 [max N].
        num_tokens: Number of tokens of the text in each slot, int32 [R + 1].
        read: Attention of the newest row in each slot, summed over `PriorSpec.read_layers`, float32 [R + 1, T].
    """

    def __init__(self, spec: TextConditions, width: int):
        super().__init__()
        self._spec = spec
        self.embed = _weight(spec.num_ids, width)
        self.positions = _weight(spec.max_tokens, width)
        self.layers = nn.ModuleList(_EncoderLayer(spec.encoder, width) for _ in range(spec.encoder.num_layers))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS, bias=False)

    def prepare(self, layers: Sequence["DecoderLayer"], num_slots: int, max_rows: int, dtype: torch.dtype) -> None:
        """Allocate the tables of `num_slots` slots, R, for a decoder of `dtype`."""
        spec = self._spec
        device = self.embed.device
        prior = spec.prior
        self._attentions = [layer.text_attn for layer in layers]
        self._newest_ids: tuple[int, ...] = ()
        self._newest_slot = 0
        self.slots = torch.full((max_rows,), num_slots, dtype=torch.int32, device=device)
        self.attended = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self.num_tokens = torch.zeros(num_slots + 1, dtype=torch.int32, device=device)
        self.read = torch.zeros(num_slots + 1, spec.max_tokens, device=device)
        no_sums = self.read[:0]
        shape = 2, len(layers), num_slots + 1, spec.num_heads, spec.max_tokens, spec.head_dim
        self._tables = torch.zeros(shape, dtype=dtype, device=device)
        for number, (attention, keys, values) in enumerate(zip(self._attentions, *self._tables, strict=True)):
            attention.prepare(
                {"keys": keys, "values": values, "slots": self.slots, "num_tokens": self.num_tokens}
                | {"attended": self.attended, "read": self.read if _is_read(prior, number) else no_sums},
                prior if prior is not None and number in prior.layers else None,
            )

    def fill_slot(self, slot: int, condition: Condition | None, arrays: Arrays) -> None:
        """Encode the text of the request in `slot` and store its keys and values; None for no text."""
        ids = () if condition is None else condition.ids
        self.num_tokens[slot] = len(ids)
        if ids == self._newest_ids:  # same text as the other request of a CFG pair
            self._tables[:, :, slot] = self._tables[:, :, self._newest_slot]
        elif ids:
            self._store(slot, arrays.tensor(arrays.upload(np.array(ids, np.int64))))
        self._newest_ids = ids
        self._newest_slot = slot

    @torch.no_grad()
    def _store(self, slot: int, ids: torch.Tensor) -> None:
        encoded = self.encode(ids)
        for number, attention in enumerate(self._attentions):
            self._tables[:, number, slot, :, : len(ids)] = attention.keys_and_values(encoded)

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the encoded text [T, H] of token ids [T]."""
        x = F.embedding(ids, self.embed) + self.positions[: len(ids)]
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def fill(self, slots: torch.Tensor, rows: torch.Tensor) -> None:
        """Record the slots, int [N], and the ids of stream 0 of a step's `rows` [at least N, S]."""
        num_rows = len(slots)
        first = rows[:num_rows, 0]
        self.slots.fill_(len(self.num_tokens) - 1)
        self.slots[:num_rows].copy_(slots)
        self.slots[:num_rows].masked_fill_(first == self._spec.hidden_id, len(self.num_tokens) - 1)
        self.attended[:num_rows].copy_(first)
        self.read.zero_()

    def add_to(self, embeds: torch.Tensor) -> torch.Tensor:
        """Return the embeddings unchanged, because the text is read by attention only."""
        return embeds


def _is_read(prior: PriorSpec | None, layer: int) -> bool:
    return prior is not None and layer in prior.read_layers


class _EncoderLayer(nn.Module):
    """Layer of the encoder: self-attention, and an MLP of two convolutions over the text."""

    def __init__(self, spec: EncoderSpec, width: int):
        super().__init__()
        self._spec = spec
        self.norm_self = nn.LayerNorm(width, eps=NORM_EPS, bias=False)
        self.attn_proj = _weight(3 * width, width)
        self.o_proj = _weight(width, width)
        self.norm_mlp = nn.LayerNorm(width, eps=NORM_EPS, bias=False)
        self.conv_in = _weight(spec.intermediate, width, spec.kernel_size)
        self.conv_out = _weight(width, spec.intermediate, spec.kernel_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output [T, H] for a text x [T, H]."""
        heads = F.linear(self.norm_self(x), self.attn_proj).view(len(x), 3, self._spec.num_heads, -1)
        query, key, value = heads.permute(1, 2, 0, 3)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=self._spec.is_causal)
        x = x + F.linear(attended.transpose(0, 1).flatten(1), self.o_proj)
        activated = gelu(self._convolved(self.norm_mlp(x).T, self.conv_in))
        return x + self._convolved(activated, self.conv_out).T

    def _convolved(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Convolve x [C, T], padded so that the result [C', T] has as many positions."""
        num_more = self._spec.kernel_size - 1
        before = num_more if self._spec.is_causal else num_more // 2
        return F.conv1d(F.pad(x, (before, num_more - before))[None], weight)[0]


class TextAttention(nn.Module):
    """Attention of a layer to the text of each row's request.

    Attributes:
        keys, values: Tables by slot, [R + 1, Q, T, D].
        slots, num_tokens, attended: See `TextNetwork`.
        read: See `TextNetwork`; [0, T] if the layer's attention is not read.
    """

    keys: torch.Tensor
    values: torch.Tensor
    slots: torch.Tensor
    num_tokens: torch.Tensor
    attended: torch.Tensor
    read: torch.Tensor

    def __init__(self, spec: TextConditions, width: int, quant_config: Any, prefix: str):
        super().__init__()
        self._spec = spec
        inner = spec.num_heads * spec.head_dim
        shared: dict[str, Any] = {"bias": False, "quant_config": quant_config, "return_bias": False}
        self.query_proj = ReplicatedLinear(width, inner, prefix=f"{prefix}.query_proj", **shared)
        self.memory_norm = nn.LayerNorm(width, eps=NORM_EPS, bias=False)
        self.memory_proj = ReplicatedLinear(width, 2 * inner, prefix=f"{prefix}.memory_proj", **shared)
        self.o_proj = ReplicatedLinear(inner, width, prefix=f"{prefix}.o_proj", **shared)

    def prepare(self, tables: dict[str, torch.Tensor], prior: PriorSpec | None) -> None:
        """Set the tables (see the attributes), and the prior, which is None if this layer has none."""
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self._epsilon = 1.0 if prior is None else prior.epsilon
        self._window = 0 if prior is None else prior.window

    def keys_and_values(self, encoded: torch.Tensor) -> torch.Tensor:
        """Return the keys and values, [2, Q, T, D], of an encoded text [T, H]."""
        keys_and_values = self.memory_proj(self.memory_norm(encoded))
        return keys_and_values.view(len(encoded), 2, self._spec.num_heads, self._spec.head_dim).permute(1, 2, 0, 3)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the attention output [N, H] of the step's rows."""
        attended = attend(
            self.query_proj(hidden), self.keys, self.values, self.slots, self.num_tokens, self.attended, self.read,
            self._epsilon, self._window,
        )  # fmt: skip
        return self.o_proj(attended)


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int, quant_config: Any, prefix: str):
        super().__init__()
        shared: dict[str, Any] = {"bias": False, "quant_config": quant_config, "return_bias": False}
        self.fc_in = ColumnParallelLinear(width, inner, prefix=f"{prefix}.fc_in", **shared)
        self.fc_out = RowParallelLinear(inner, width, prefix=f"{prefix}.fc_out", **shared)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc_out(gelu_rows(self.fc_in(x)))


class _NoRotation(nn.Module):
    def forward(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return query, key


class DecoderLayer(LlamaDecoderLayer):
    """Layer of the decoder: a Llama layer without rotation, with attention to the text, and an MLP without a gate.

    Vectors that are added to a row are stored centred, so that the authors' LayerNorms, which have no biases, are RMS
    norms here. The first layer adds the positions of the rows.
    """

    def __init__(self, spec: TextConditions, vllm_config: VllmConfig, prefix: str = "", **options: Any):
        super().__init__(vllm_config, prefix, **options)
        config: Any = vllm_config.model_config.hf_config
        quant_config = vllm_config.quant_config
        mlp: Any = _Mlp(self.hidden_size, config.intermediate_size, quant_config, f"{prefix}.mlp")
        self.mlp = mlp
        self.self_attn.rotary_emb = _NoRotation()
        self.text_norm = RMSNorm(self.hidden_size, eps=config.rms_norm_eps)
        self.text_attn = TextAttention(spec, self.hidden_size, quant_config, f"{prefix}.text_attn")
        self.positions: nn.Embedding | None = None
        if prefix.endswith(".0"):
            self.positions = nn.Embedding(config.max_position_embeddings, self.hidden_size)

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output of the MLP and the residual, [N, H] each."""
        if residual is None:
            assert self.positions is not None
            residual = hidden_states + self.positions(positions)
            hidden_states = self.input_layernorm(residual)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        residual = residual + self.self_attn(positions=positions, hidden_states=hidden_states)
        hidden_states = self.text_attn(self.text_norm(residual))
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


def layer(spec: TextConditions) -> type[DecoderLayer]:
    """Return the class of the backbone's layers (`RequestConditions.layer`)."""

    class Layer(DecoderLayer):
        def __init__(self, vllm_config: VllmConfig, prefix: str = "", **options: Any):
            super().__init__(spec, vllm_config, prefix, **options)

    return Layer
