"""Transformer layers with sliding-window attention and rotary embeddings, which keep keys and values in the state."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs import device
from stretto.codecs.kernels.operators import runs_kernels
from stretto.codecs.memory import Memory

NORM_EPS = 1e-5
GELU_FORMS = {"tanh": "tanh", "erf": "none"}  # forms of GELU, and torch's names for them


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """Hyperparameters of the transformer, under their published names; a step attends to `context` steps."""

    d_model: int
    num_heads: int
    num_layers: int
    dim_feedforward: int
    context: int
    max_period: float
    gelu: str = "tanh"  # form of GELU: `tanh` or `erf`


class Attention(nn.Module):
    """Sliding-window attention, with rotary embeddings for adjacent pairs of channels."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.before = config.context - 1
        self.in_proj = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.out_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.kept = 2 * self.before * config.d_model
        width = config.d_model // config.num_heads
        self.sizes = device.Heads(self.heads, self.heads, width, self.before, is_paired=True)
        self.rotation_at = rotation_at

    def forward(self, x: Tensor, rotation: Tensor, is_seen: Tensor, memory: Memory) -> Tensor:
        """Return the output [B, n, C] for x [B, n, C] and the mask is_seen [B, 1, n, before + n]."""
        query, key, value = self.in_proj(x).unflatten(2, (3, self.heads, -1)).unbind(2)
        key = memory.recall(rotated(key, rotation).flatten(2), self.before, time=1)
        value = memory.recall(value.flatten(2), self.before, time=1)
        query = rotated(query, rotation).transpose(1, 2)
        key, value = (each.unflatten(2, (self.heads, -1)).transpose(1, 2) for each in (key, value))
        seen = F.scaled_dot_product_attention(query, key, value, is_seen)
        return self.out_proj(seen.transpose(1, 2).flatten(2))


def frequencies_of(config: TransformerConfig) -> Tensor:
    """Return the rotary frequencies of a head, float32 [D / 2], in host memory."""
    half = config.d_model // config.num_heads // 2
    exponents = torch.arange(half, dtype=torch.float32, device="cpu") * -(np.log(config.max_period) / half)
    return exponents.exp()


def rotation_at(first: Tensor, num_steps: int, frequencies: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the cosines and sines for n steps from position `first` [B], [B, n, 1, D / 2, 2]."""
    steps = first[:, None] + torch.arange(num_steps, device=first.device)
    angles = (steps.float()[..., None] * frequencies.float())[:, :, None]
    return torch.stack([angles.cos(), angles.sin()], -1).to(dtype)


def visible(first: Tensor, num_steps: int, before: int) -> Tensor:
    """Return the attention mask for n steps from position `first` [B]: bool [B, 1, n, before + n]."""
    key = torch.arange(before + num_steps, device=first.device)
    ahead = key - torch.arange(num_steps, device=first.device)[:, None]  # relative to the first visible step
    is_near = (ahead >= 0) & (ahead <= before)
    is_there = key >= before - first[:, None]
    return is_near & is_there[:, None, None]


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Return x [B, n, heads, D] with adjacent pairs rotated by angles [B, n, 1, D / 2], given as cosine and sine."""
    one, other = x.unflatten(-1, (-1, 2)).unbind(-1)
    cosines, sines = rotation.unbind(-1)
    return torch.stack([one * cosines - other * sines, one * sines + other * cosines], -1).flatten(-2)


class Scale(nn.Module):
    """Per-channel scale of a residual branch (LayerScale; Touvron et al., arXiv 2103.17239)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class Layer(nn.Module):
    """Attention and a GELU feed-forward layer, with pre-norms and residual connections, optionally with LayerScale."""

    def __init__(self, config: TransformerConfig, has_scales: bool = True) -> None:
        super().__init__()
        width = config.d_model
        self.self_attn = Attention(config)
        self.norm1, self.norm2 = (nn.LayerNorm(width, NORM_EPS) for _ in range(2))
        self.linear1 = nn.Linear(width, config.dim_feedforward, bias=False)
        self.linear2 = nn.Linear(config.dim_feedforward, width, bias=False)
        self.layer_scale_1, self.layer_scale_2 = (Scale(width) if has_scales else nn.Identity() for _ in range(2))
        self.approximation = GELU_FORMS[config.gelu]

    def forward(self, x: Tensor, rotation: Tensor, is_seen: Tensor, memory: Memory) -> Tensor:
        x = x + self.layer_scale_1(self.self_attn(self.norm1(x), rotation, is_seen, memory))
        return x + self.layer_scale_2(self.linear2(F.gelu(self.linear1(self.norm2(x)), approximate=self.approximation)))

    def launch(self, x: Tensor, window: device.Window, memory: Memory) -> Tensor:
        """Return the output [B, n, C] on a GPU, in five launches."""
        attention = self.self_attn
        state = memory.part(attention.kept, x.shape[1])
        last = attention.out_proj, _gain(self.layer_scale_1)
        x = device.attend(x, device.norm_of(self.norm1), attention.in_proj.weight, attention.sizes, window, state, last)
        ending = device.Ending(activation="gelu_tanh" if self.approximation == "tanh" else "gelu")
        wide = device.multiply(x, self.linear1.weight, None, device.norm_of(self.norm2), ending)
        ending = device.Ending(gain=_gain(self.layer_scale_2), residual=x)
        return device.multiply(wide, self.linear2.weight, ending=ending)


def _gain(scale: nn.Module) -> Tensor | None:
    return scale.scale if isinstance(scale, Scale) else None


def can_launch(layers: Sequence[Any], x: Tensor) -> bool:
    """Return True if the layers have kernels for the device of `x` and for their sizes."""
    return runs_kernels(x) and device.can_attend(layers[0].self_attn.sizes)


def run_layers(layers: Sequence[Any], x: Tensor, first: Tensor, frequencies: Tensor, memory: Memory) -> Tensor:
    """Return the outputs [B, n, C] of transformer layers of this module or of the Qwen3-TTS codec.

    Args:
        first: Position of the first step of each utterance, [B].
        frequencies: Rotary frequencies of a head, [D / 2].
    """
    if can_launch(layers, x):
        x = x.contiguous()
        window = device.window_of(first, x.shape[1], frequencies)
        for layer in layers:
            x = layer.launch(x, window, memory)
        return x
    attention = layers[0].self_attn
    rotation = attention.rotation_at(first, x.shape[1], frequencies, x.dtype)
    is_seen = visible(first, x.shape[1], attention.before)
    for layer in layers:
        x = layer(x, rotation, is_seen, memory)
    return x
