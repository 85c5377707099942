"""Sliding-window transformer between codebooks and convolutions, with keys and values in the memory."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codec.qwen3_12hz.config import DecoderShape
from stretto.codec.qwen3_12hz.memory import Memory

Rotation = tuple[Tensor, Tensor]


class Scale(nn.Module):
    """Per-channel scale of a residual branch (LayerScale; Touvron et al., arXiv 2103.17239)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class Attention(nn.Module):
    """Sliding-window attention. `kept`: numbers of its part of the memory, keys then values."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.heads, self.width, self.before = shape.num_attention_heads, shape.head_dim, shape.sliding_window - 1
        self.is_grouped = shape.num_key_value_heads != self.heads
        queried, held = self.heads * self.width, shape.num_key_value_heads * self.width
        self.q_proj = nn.Linear(shape.hidden_size, queried, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, held, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, held, bias=False)
        self.o_proj = nn.Linear(queried, shape.hidden_size, bias=False)
        self.kept = 2 * self.before * held

    def forward(self, x: Tensor, rotation: Rotation, is_seen: Tensor, memory: Memory) -> Tensor:
        """Return attention outputs for x [B, n, H]; is_seen [B, 1, n, before + n]."""
        query, key, value = (
            linear(x).unflatten(2, (-1, self.width)) for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        key = memory.recall(rotated(key, rotation), self.before, time=1)
        value = memory.recall(value, self.before, time=1)
        query, key, value = (each.transpose(1, 2) for each in (rotated(query, rotation), key, value))
        seen = F.scaled_dot_product_attention(query, key, value, is_seen, enable_gqa=self.is_grouped)
        return self.o_proj(seen.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (
            nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False) for _ in range(2)
        )
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and feed-forward, each pre-normalised, scaled and residual."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(shape), FeedForward(shape)
        self.input_layernorm, self.post_attention_layernorm = (
            nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps) for _ in range(2)
        )
        self.self_attn_layer_scale, self.mlp_layer_scale = Scale(shape.hidden_size), Scale(shape.hidden_size)

    def forward(self, x: Tensor, rotation: Rotation, is_seen: Tensor, memory: Memory) -> Tensor:
        x = x + self.self_attn_layer_scale(self.self_attn(self.input_layernorm(x), rotation, is_seen, memory))
        return x + self.mlp_layer_scale(self.mlp(self.post_attention_layernorm(x)))


class Transformer(nn.Module):
    """Transformer over latents [B, n, C] of steps at positions first [B] + 0 … n - 1.

    `is_projected`: True if latents are projected to the transformer's width and back.
    """

    frequencies: Tensor

    def __init__(self, shape: DecoderShape, is_projected: bool = True) -> None:
        super().__init__()
        self.before = shape.sliding_window - 1
        self.input_proj = nn.Linear(shape.latent_dim, shape.hidden_size) if is_projected else nn.Identity()
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.output_proj = nn.Linear(shape.hidden_size, shape.latent_dim) if is_projected else nn.Identity()
        exponents = torch.arange(0, shape.head_dim, 2).float() / shape.head_dim
        self.register_buffer("frequencies", 1 / shape.rope_theta**exponents, persistent=False)

    def forward(self, latents: Tensor, first: Tensor, memory: Memory) -> Tensor:
        # the residual stream keeps the weights' dtype in half precision, too
        x = self.input_proj(latents).to(self.norm.weight.dtype)
        rotation, is_seen = self._rotation(first, x), self.visible(first, x.shape[1])
        for layer in self.layers:
            x = layer(x, rotation, is_seen, memory)
        return self.output_proj(self.norm(x))

    def visible(self, first: Tensor, steps: int) -> Tensor:
        """Return the attention mask of `steps` steps from `first` [B] on: bool [B, 1, steps, before + steps]."""
        key = torch.arange(self.before + steps, device=first.device)
        ahead = key - torch.arange(steps, device=first.device)[:, None]  # relative to the first visible step
        is_near, is_there = (ahead >= 0) & (ahead <= self.before), key >= self.before - first[:, None]
        return is_near & is_there[:, None, None]

    def _rotation(self, first: Tensor, x: Tensor) -> Rotation:
        """Return cosines and sines [B, n, 1, head_dim].

        Angles are rounded to float32 in all precisions, as in training.
        """
        steps = first[:, None] + torch.arange(x.shape[1], device=x.device)
        angles = (steps.float()[..., None] * self.frequencies.float()).repeat(1, 1, 2)[:, :, None]
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """Return x [B, n, heads, width] rotated by its steps' angles; the two halves are the two coordinates."""
    cosines, sines = rotation
    one, other = x.chunk(2, -1)
    return x * cosines + torch.cat([-other, one], -1) * sines
