"""VoxCPM2 language models, patch encoder and diffusion head.

    row ─► base model ─► (patches: bottleneck) ─► h ─► fusion with the row's patch ─► residual model ─► r
                                               └► speech ends?          head(h, r, patch of the row) ─► next patch

h is the hidden state of the base model, and r that of the residual model. Both models are layers of a single vLLM
model, so that their keys and values share one group of KV blocks.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import QKVParallelLinear, ReplicatedLinear, RowParallelLinear
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaMLP

from stretto.engine.models.latents import LatentMixin, SolverPlan, SolverTable, have_ids, silu
from stretto_voxcpm2.mechanism.attention import local_attention

STACKED = {
    "q_proj": ("qkv_proj", "q"),
    "k_proj": ("qkv_proj", "k"),
    "v_proj": ("qkv_proj", "v"),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
# for the time embedding
TIME_SCALE = 1000.0
LONGEST_WAVE = 10000.0
UNCHANGED_PART = 0.04  # share of steps in which the solver leaves the noise unchanged
EPS = 1e-8  # for the projection onto the unconditional velocity


def linear(columns: int, rows: int) -> ReplicatedLinear:
    """Return a linear layer with a bias that is replicated on every rank."""
    return ReplicatedLinear(columns, rows, return_bias=False)


def rotary(config: Any) -> RotaryEmbedding:
    """Return the rotary embedding for queries and keys, with LongRoPE frequencies and scale."""
    rope = config.long_rope
    size = config.head_dim
    longest = config.max_position_embeddings
    embedding = RotaryEmbedding(size, size, longest, rope["theta"], True, torch.float32)
    frequencies = 1.0 / (rope["theta"] ** (torch.arange(0, size, 2).float() / size))
    angles = torch.outer(torch.arange(longest).float(), 1.0 / torch.tensor(rope["factors"])) * frequencies
    table = torch.cat([angles.cos(), angles.sin()], -1) * rope["scale"]
    embedding.register_buffer("cos_sin_cache", table, persistent=False)
    return embedding


class NoRotation(nn.Module):
    """Identity that replaces the rotary embedding in the layers of the residual model."""

    def forward(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return query, key


class LocalLayer(nn.Module):
    """Llama layer with bidirectional attention among the few tokens of a row; replicated on every rank."""

    def __init__(self, config: Any, size: dict[str, int], rotation: nn.Module):
        super().__init__()
        width = size["width"]
        heads = size["num_heads"]
        eps = config.rms_norm_eps
        kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.self_attn: Any = nn.Module()
        self.self_attn.qkv_proj = QKVParallelLinear(
            width, self.head_dim, heads, kv_heads, bias=False, return_bias=False, disable_tp=True
        )
        self.self_attn.o_proj = RowParallelLinear(
            heads * self.head_dim, width, bias=False, return_bias=False, disable_tp=True
        )
        self.mlp = LlamaMLP(width, size["inner"], "silu", disable_tp=True)
        self.input_layernorm, self.post_attention_layernorm = (RMSNorm(width, eps=eps) for _ in range(2))
        self.sizes = [number * self.head_dim for number in (heads, kv_heads, kv_heads)]
        self.rotate = rotation

    def forward(
        self, positions: torch.Tensor, x: torch.Tensor, residual: torch.Tensor | None, length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return output and residual [N * length, C] of tokens [N * length, C], which are grouped by row."""
        if residual is None:
            residual = x
            x = self.input_layernorm(x)
        else:
            x, residual = self.input_layernorm(x, residual)
        x, residual = self.post_attention_layernorm(self._attended(positions, x, length), residual)
        return self.mlp(x), residual

    def _attended(self, positions: torch.Tensor, x: torch.Tensor, length: int) -> torch.Tensor:
        query, key, value = self.self_attn.qkv_proj(x).split(self.sizes, -1)
        query, key = self.rotate(positions, query.contiguous(), key.contiguous())
        return self.self_attn.o_proj(local_attention(query, key, value, self.head_dim, length))


class LocalTransformer(nn.Module):
    """Layers over the few tokens of each row, and a final norm."""

    def __init__(self, config: Any, size: dict[str, int], rotation: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(LocalLayer(config, size, rotation) for _ in range(size["num_layers"]))
        self.norm = RMSNorm(size["width"], eps=config.rms_norm_eps)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return outputs [N, n, C] for tokens [N, n, C], which attend to tokens of their own row."""
        num_rows, length, width = tokens.shape
        positions = torch.arange(length, device=tokens.device).repeat(num_rows)
        x = tokens.reshape(-1, width)
        residual = None
        for layer in self.layers:
            x, residual = layer(positions, x, residual, length)
        x, _ = self.norm(x, residual)
        return x.view(num_rows, length, width)


class PatchEncoder(nn.Module):
    """Encoder of a patch to an embedding: the output at a special token that precedes the latents."""

    def __init__(self, config: Any, num_numbers: int, rotation: nn.Module):
        super().__init__()
        width = config.encoder["width"]
        self.num_numbers = num_numbers
        self.special_token = nn.Parameter(torch.empty(width), requires_grad=False)
        self.enter = linear(num_numbers, width)
        self.transformer = LocalTransformer(config, config.encoder, rotation)
        self.leave = linear(width, config.hidden_size)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        latents = self.enter(patches.reshape(-1, self.num_numbers))
        latents = latents.view(len(patches), -1, latents.shape[1])
        special = self.special_token.expand(len(patches), 1, -1)
        return self.leave(self.transformer(torch.cat([special, latents], 1))[:, 0].contiguous())


class TimeEmbedding(nn.Module):
    """Embedding of solver times."""

    def __init__(self, width: int):
        super().__init__()
        self.enter = linear(width, width)
        self.leave = linear(width, width)

    def forward(self, times: torch.Tensor) -> torch.Tensor:
        """Return the embedding [n, C] of times [n]."""
        half = self.enter.input_size // 2
        steps = torch.arange(half, dtype=torch.float32, device=times.device)
        waves = torch.exp(steps * -float(torch.tensor(LONGEST_WAVE).log() / (half - 1)))
        angles = TIME_SCALE * times[:, None] * waves
        return self.leave(silu(self.enter(torch.cat([angles.sin(), angles.cos()], -1))))


def solver_steps(number: int) -> torch.Tensor:
    """Return the time and width of each step in a solver with `number` steps, [n, 2], as in the authors' code.

    The width is 0 for the first steps, which leave the noise unchanged.
    """
    ends = torch.linspace(1, 0, number + 1)
    ends = ends + (torch.cos(torch.pi / 2 * ends) - 1 + ends)
    time = ends[0]
    width = ends[0] - ends[1]
    steps = list[torch.Tensor]()
    for step in range(1, number + 1):
        steps.append(torch.stack([time, width]))
        time = time - width
        if step < number:
            width = time - ends[step + 1]
    for step in range(max(1, int((number + 1) * UNCHANGED_PART))):
        steps[step][1] = 0
    return torch.stack(steps)


class DiffusionHead(nn.Module):
    """Guided diffusion head, which converts noise to a patch, given both hidden states and the previous patch.

    The unconditional velocity is computed without hidden states. Before the two velocities are merged, it is replaced
    with the projection of the conditional velocity onto it (CFG-Zero*).
    """

    def __init__(self, config: Any, num_words: int, num_numbers: int, rotation: nn.Module):
        super().__init__()
        width = config.head["width"]
        self.num_numbers = num_numbers
        self.num_latents = num_words // num_numbers
        self.width = width
        self.enter = linear(num_numbers, width)
        self.condition = linear(num_numbers, width)
        self.transformer = LocalTransformer(config, config.head, rotation)
        self.leave = linear(width, num_numbers)
        self.time = TimeEmbedding(width)
        self.time_step = TimeEmbedding(width)

    def prepare(self, steps: range) -> "DiffusionHead":
        """Precompute the steps of all permitted solvers, and return this head."""
        device = self.leave.get_parameter("weight").device
        self._times = SolverTable(lambda number: solver_steps(number)[:, 0], steps, partial(self._embedded, device))
        self._widths = SolverTable(lambda number: solver_steps(number)[:, 1:], steps, lambda rows: rows.to(device))
        return self

    def forward(
        self,
        hidden: torch.Tensor,
        noise: torch.Tensor,
        steps: torch.Tensor,
        plan: SolverPlan,
        other: torch.Tensor,
        guidance: torch.Tensor,
    ) -> torch.Tensor:
        """Return the patches [N, D] that follow the patches `other` [N, D] (see `GuidedLatentPredictor`)."""
        states = hidden[:, : 2 * self.width].unflatten(1, (2, self.width))
        context = self._tokens(self.condition, other)
        scale = guidance[:, None]
        x = noise
        for step in range(1, plan.num_steps):  # the first step of every solver leaves the noise unchanged
            width = torch.where(step < steps[:, None], self._widths.at(step, steps), 0.0)
            times = self._times.at(step, steps)[:, None]
            around = torch.cat([times, context, self._tokens(self.enter, x)], 1)
            velocity = self._velocity(torch.cat([states, around], 1))
            if plan.is_guided:
                plain = self._velocity(torch.cat([torch.zeros_like(states), around], 1))
                velocity = torch.where(scale == 1, velocity, self._merged(velocity, plain, scale))
            x = torch.where(width == 0, x, x - width * velocity)
        return x

    def _merged(self, velocity: torch.Tensor, plain: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        # In float64, so that the order of additions does not affect the result.
        product, square = ((vector.double() * plain).sum(1, keepdim=True) for vector in (velocity, plain))
        plain = plain * (product.float() / (square.float() + EPS))
        return plain + scale * (velocity - plain)

    def _tokens(self, layer: nn.Module, patches: torch.Tensor) -> torch.Tensor:
        """Return the tokens [N, P, C] of patches [N, D]."""
        return layer(patches.reshape(-1, self.num_numbers)).view(len(patches), self.num_latents, self.width)

    def _velocity(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the velocity [N, D], computed from the last P tokens of [N, n, C]."""
        out = self.transformer(tokens)[:, -self.num_latents :]
        return self.leave(out.reshape(-1, self.width)).view(len(tokens), -1)

    def _embedded(self, device: torch.device, times: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [n, C] of times [n]."""
        return self.time(times.to(device)) + self.time_step(torch.zeros(1, device=device))


class Bottleneck(nn.Module):
    """Projection of a patch's hidden state to a few dimensions, where it is rounded to a grid, and back."""

    def __init__(self, config: Any):
        super().__init__()
        narrow = config.bottleneck["width"]
        self.scale = config.bottleneck["scale"]
        self.enter = linear(config.hidden_size, narrow)
        self.leave = linear(narrow, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return hidden states [N, H] after the bottleneck."""
        # In float64, because the bits of float32 tanh in torch differ at the end of a batch, which could change the
        # rounding.
        narrow = torch.tanh(self.enter(hidden).double()).float()
        return self.leave(torch.round(narrow * self.scale) / self.scale)


class VoxCpmTransformer(nn.Module):
    """Base model, bottleneck, fusion and residual model, and the projections of the hidden states."""

    def __init__(self, vllm_config: VllmConfig, prefix: str, rotation: nn.Module):
        super().__init__()
        config = vllm_config.model_config.hf_config
        width = config.hidden_size
        eps = config.rms_norm_eps
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, width)
        names = (f"{prefix}.layers.{index}" for index in range(config.num_hidden_layers))
        layers: list[Any] = [LlamaDecoderLayer(vllm_config, name) for name in names]
        self.num_base = config.num_hidden_layers - config.num_residual_layers
        for index, layer in enumerate(layers):
            layer.self_attn.rotary_emb = rotation if index < self.num_base else NoRotation()
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(width, eps=eps)
        self.residual_norm = RMSNorm(width, eps=eps)
        self.bottleneck = Bottleneck(config)
        self.fusion = linear(2 * width, width)
        self.to_head, self.residual_to_head = (linear(width, config.head["width"]) for _ in range(2))
        self.stop = linear(width, width)

    def forward(
        self,
        ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate: object,
        embeds: torch.Tensor | None,
        is_patch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the head's states, followed by the states for the end of speech, [N, 2 * C + H].

        Args:
            ids: Ids of stream 0, [N]; unused if `embeds` is given.
            embeds: Embedded rows, [N, H].
            is_patch: True for rows with a patch, bool [N, 1]; None if there are no such rows.
        """
        rows = self.embed_tokens(ids) if embeds is None else embeds
        hidden = self._through(self.layers[: self.num_base], self.norm, positions, rows)
        patches = torch.zeros_like(rows)
        if is_patch is not None:
            hidden = torch.where(is_patch, self.bottleneck(hidden), hidden)
            patches = torch.where(is_patch, rows, patches)
        fused = self.fusion(torch.cat([hidden, patches], -1))
        residual = self._through(self.layers[self.num_base :], self.residual_norm, positions, fused)
        return torch.cat([self.to_head(hidden), self.residual_to_head(residual), silu(self.stop(hidden))], -1)

    def _through(self, layers: Any, norm: nn.Module, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        # the first norm keeps its input as the residual, and adds to it in place
        x = rows.clone()
        residual = None
        for layer in layers:
            x, residual = layer(positions, x, residual)
        return norm(x, residual)[0]


class VoxCpmForCausalLM(nn.Module):
    """Both language models, as vLLM loads them."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        self.config = vllm_config.model_config.hf_config
        self.rotation = rotary(self.config)
        self.model = VoxCpmTransformer(vllm_config, f"{prefix}model", self.rotation)

    def embed_input_ids(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model.embed_tokens(ids)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load tensors by name. The query, key and value layers are stacked, as are the first two of an MLP."""
        parameters = dict(self.named_parameters())
        loaded = set[str]()
        for name, tensor in weights:
            parent, _, tensor_name = name.rpartition(".")
            module, _, layer = parent.rpartition(".")
            stacked, *shard = STACKED.get(layer, (layer,))
            target = f"{module}.{stacked}.{tensor_name}" if module else name
            if target not in parameters:
                raise ValueError(f"There is no module or parameter named {name!r}")
            load = getattr(parameters[target], "weight_loader", default_weight_loader)
            load(parameters[target], tensor, *shard)
            loaded.add(target)
        return loaded


class StrettoVoxCpmForCausalLM(LatentMixin, VoxCpmForCausalLM):
    """VoxCPM2 for vLLM; selected by `architectures` in config.json."""

    end_has_bias = False

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        num_numbers = self.config.speech_vocabulary["num_numbers"]
        self.patches = PatchEncoder(self.config, num_numbers, self.rotation)
        self.head = DiffusionHead(self.config, self.num_words, num_numbers, self.rotation)

    def layer_inputs(self, rows: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Return the mask of rows with a patch."""
        return {} if rows is None else {"is_patch": have_ids(rows, self.family.layout.audio[0])[:, None]}

    def embed_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [N, H] of patches [N, D]."""
        return self.patches(latents)

    def latent_predictor(self) -> DiffusionHead:
        assert self.family.layout.latents is not None
        return self.head.prepare(self.family.layout.latents.steps)

    def end_weight(self) -> torch.Tensor:
        """Return the weights of the end-of-speech logit. Those of the diffusion head's states are 0."""
        weight = self.end_of_speech.weight.data
        return torch.cat([weight.new_zeros(2 * self.head.width), weight])
