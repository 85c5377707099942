"""Pocket TTS language model: a pre-norm transformer without biases, a connector for latents, and a flow head."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from stretto.engine.models.latents import LatentMixin, SolverPlan, SolverTable, activate_rows, silu

NORM_EPS = 1e-5
FLOW_EPS = 1e-6
TIME_EPS = 1e-5
Activation = Callable[[torch.Tensor], torch.Tensor]


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """Return GELU in its tanh form of x [N, H]. The result for a row is bit-identical in every batch."""
    return activate_rows(partial(F.gelu, approximate="tanh"), x)


class PocketLayer(nn.Module):
    """Attention with rotary embeddings for adjacent pairs, and an MLP, each preceded by a LayerNorm.

    `activate`, the MLP's activation, must give a row the same bits in every batch.
    """

    def __init__(self, vllm_config: VllmConfig, prefix: str, activate: Activation):
        super().__init__()
        self.activate = activate
        config = vllm_config.model_config.hf_config
        width = config.hidden_size
        head_dim = config.head_dim
        num_heads = config.num_attention_heads
        num_kv_heads = config.num_key_value_heads
        self.in_proj = QKVParallelLinear(width, head_dim, num_heads, num_kv_heads, bias=False, return_bias=False)
        self.sizes = [self.in_proj.num_heads * head_dim, *[self.in_proj.num_kv_heads * head_dim] * 2]
        self.o_proj = RowParallelLinear(num_heads * head_dim, width, bias=False, return_bias=False)
        self.rotary_emb = get_rope(
            head_dim,
            max_position=config.max_position_embeddings,
            is_neox_style=False,
            rope_parameters=dict(config.rope_parameters),
        )
        self.attn = Attention(
            self.in_proj.num_heads,
            head_dim,
            head_dim**-0.5,
            num_kv_heads=self.in_proj.num_kv_heads,
            cache_config=vllm_config.cache_config,
            prefix=f"{prefix}.attn",
        )
        self.up_proj = ColumnParallelLinear(width, config.intermediate_size, bias=False, return_bias=False)
        self.down_proj = RowParallelLinear(config.intermediate_size, width, bias=False, return_bias=False)
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=NORM_EPS) for _ in range(2))

    def forward(self, positions: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.in_proj(self.norm1(x)).split(self.sizes, -1)
        query, key = self.rotary_emb(positions, query.contiguous(), key.contiguous())
        x = x + self.o_proj(self.attn(query, key, value.contiguous()))
        return x + self.down_proj(self.activate(self.up_proj(self.norm2(x))))


class PocketTransformer(nn.Module):
    """Embeddings, layers and final norm."""

    def __init__(self, vllm_config: VllmConfig, prefix: str, activate: Activation):
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        names = (f"{prefix}.layers.{index}" for index in range(config.num_hidden_layers))
        self.layers = nn.ModuleList(PocketLayer(vllm_config, name, activate) for name in names)
        self.norm = nn.LayerNorm(config.hidden_size, eps=NORM_EPS)

    def forward(
        self, ids: torch.Tensor | None, positions: torch.Tensor, intermediate: object, embeds: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the hidden states [N, H] for ids or embedded rows."""
        x = self.embed_tokens(ids) if embeds is None else embeds
        for layer in self.layers:
            x = layer(positions, x)
        return self.norm(x)


class FlowBlock(nn.Module):
    """Residual block of the flow head. The condition shifts and scales its norm, and gates its output."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=FLOW_EPS)
        self.modulation = ReplicatedLinear(width, 3 * width, return_bias=False)
        self.enter, self.leave = (ReplicatedLinear(width, width, return_bias=False) for _ in range(2))

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift, scale, gate = self.modulation(condition).chunk(3, -1)
        return x + gate * self.leave(silu(self.enter(self.norm(x) * (1 + scale) + shift)))


class FlowTime(nn.Module):
    """Embedding of a time in [0, 1].

    Args:
        width: Width of the embedding, C.
        is_centred: True to divide the embedding by its standard deviation, False by its root mean square.
    """

    def __init__(self, width: int, num_frequencies: int, is_centred: bool):
        super().__init__()
        self.is_centred = is_centred
        self.frequencies = nn.Parameter(torch.empty(num_frequencies), requires_grad=False)
        self.enter = ReplicatedLinear(2 * num_frequencies, width, return_bias=False)
        self.leave = ReplicatedLinear(width, width, return_bias=False)
        self.alpha = nn.Parameter(torch.empty(width), requires_grad=False)

    def forward(self, times: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [N, C] of times [N, 1]."""
        angles = times * self.frequencies
        x = self.leave(silu(self.enter(torch.cat([angles.cos(), angles.sin()], -1))))
        power = x.var(-1, keepdim=True) if self.is_centred else x.square().mean(-1, keepdim=True)
        return x * (self.alpha * torch.rsqrt(power + TIME_EPS))


class FlowHead(nn.Module):
    """Flow head, which converts noise [N, D] to a latent in one or more Euler steps, given the hidden state.

    `lsd` reads the start and end time of a step, `flow_matching` only the start time, and `pointwise` and `drifting` no
    time. The output of `drifting` is the latent itself.
    """

    def __init__(self, config: Any, num_words: int, is_centred: bool):
        super().__init__()
        flow = config.flow
        width = config.flow["width"]
        self.flow_type = flow["kind"]
        state_width = flow["state_width"] or config.hidden_size
        if flow["state_width"]:
            self.state = ReplicatedLinear(config.hidden_size, state_width, bias=False, return_bias=False)
        self.condition = ReplicatedLinear(state_width, width, return_bias=False)
        self.enter = ReplicatedLinear(num_words, width, return_bias=False)
        self.blocks = nn.ModuleList(FlowBlock(width) for _ in range(flow["num_blocks"]))
        self.modulation = ReplicatedLinear(width, 2 * width, return_bias=False)
        self.leave = ReplicatedLinear(width, num_words, return_bias=False)
        num_times = {"lsd": 2, "flow_matching": 1}.get(self.flow_type, 0)
        self.times = nn.ModuleList(FlowTime(width, flow["num_frequencies"], is_centred) for _ in range(num_times))
        self._times: SolverTable | None = None

    def prepare(self, steps: range) -> "FlowHead":
        """Precompute the time embeddings for every permitted number of steps, and return this head."""
        if self.times:
            device = self.condition.get_parameter("weight").device
            self._times = SolverTable(partial(_times, device), steps, self._embedded)
        return self

    def forward(self, hidden: torch.Tensor, noise: torch.Tensor, steps: torch.Tensor, plan: SolverPlan) -> torch.Tensor:
        """Return the latents [N, D]; see `LatentPredictor`."""
        condition = self.condition(self.state(hidden) if hasattr(self, "state") else hidden)
        if self._times is None:
            moved = self._velocity(silu(condition), noise)
            return moved if self.flow_type == "drifting" else noise + moved
        x = noise
        for step in range(plan.num_steps):
            moved = x + self._velocity(silu(condition + self._times.at(step, steps)), x) / steps[:, None]
            x = torch.where(step < steps[:, None], moved, x)
        return x

    def _velocity(self, condition: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition).chunk(2, -1)
        return self.leave(F.layer_norm(x, x.shape[-1:], eps=FLOW_EPS) * (1 + scale) + shift)

    def _embedded(self, times: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [n, C] of the start and the end of steps, [n, 2]."""
        return torch.stack([time(end) for time, end in zip(self.times, times.split(1, 1), strict=False)]).mean(0)


def _times(device: torch.device, number: int) -> torch.Tensor:
    """Return the start and the end of each of n Euler steps, [n, 2]."""
    starts = torch.arange(number, device=device)[:, None]
    return torch.cat([starts / number, (starts + 1) / number], 1)


class PocketForCausalLM(nn.Module):
    """Transformer with the connector and the flow head, as vLLM loads it."""

    activate = staticmethod(gelu_tanh)

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        self.config = vllm_config.model_config.hf_config
        self.model = PocketTransformer(vllm_config, f"{prefix}model", self.activate)

    def embed_input_ids(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model.embed_tokens(ids)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load tensors by name. `in_proj` contains the projections to queries, keys and values."""
        parameters = dict(self.named_parameters())
        loaded = set[str]()
        for name, tensor in weights:
            if name not in parameters:
                raise ValueError(f"There is no module or parameter named {name!r}")
            load = getattr(parameters[name], "weight_loader", default_weight_loader)
            load(parameters[name], tensor)
            loaded.add(name)
        return loaded


class StrettoPocketForCausalLM(LatentMixin, PocketForCausalLM):
    """Pocket TTS for vLLM; selected by `architectures` in config.json.

    Attributes:
        has_connector_bias: True if a vector is added to the embedding of every latent.
    """

    has_connector_bias = False
    is_centred = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        width = self.config.hidden_size
        self.connector = ReplicatedLinear(self.num_words, width, bias=self.has_connector_bias, return_bias=False)
        self.flow = FlowHead(self.config, self.num_words, self.is_centred)
        if self.voice_ids:
            self.voice_connector = ReplicatedLinear(self.num_words, width, bias=False, return_bias=False)

    def embed_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [N, H] of latents [N, D]."""
        return self.connector(latents)

    def embed_voice(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [N, H] of latents of a recording [N, D]."""
        return self.voice_connector(latents)

    def latent_predictor(self) -> FlowHead:
        assert self.family.layout.latents is not None
        return self.flow.prepare(self.family.layout.latents.steps)
