"""Slow reference of the depth transformer, and its random weights, for `stretto.testing`."""

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers.activations import ACT2FN

from stretto.family.base import Family
from stretto_moss.moss_tts_local.family import Gpt2Spec


def random_weights(spec: Gpt2Spec, random: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return random norms and layers of a depth transformer without a projection."""
    wide = spec.num_heads * spec.head_dim
    keys = spec.num_kv_heads * spec.head_dim
    inner = spec.intermediate
    shapes = {"q_proj": (wide, spec.hidden), "k_proj": (keys, spec.hidden), "v_proj": (keys, spec.hidden)}
    shapes |= {"o_proj": (spec.hidden, wide), "fc_in": (inner, spec.hidden), "fc_out": (spec.hidden, inner)}
    weights = {
        "depth.norm.weight": 1 + random(spec.hidden, scale=0.1),
        "depth.norm.bias": random(spec.hidden, scale=0.1),
    }
    for layer in range(spec.num_layers):
        for name, shape in shapes.items():
            weights[f"depth.layers.{layer}.{name}.weight"] = random(*shape, scale=1.5 * shape[1] ** -0.5)
            weights[f"depth.layers.{layer}.{name}.bias"] = random(shape[0], scale=0.2)
        for name in ("ln_1", "ln_2"):
            weights[f"depth.layers.{layer}.{name}.weight"] = 1 + random(spec.hidden, scale=0.1)
            weights[f"depth.layers.{layer}.{name}.bias"] = random(spec.hidden, scale=0.1)
    return weights


class Gpt2Reference:
    """Slow depth transformer with GPT-2's layers, created from the `depth.…` tensors, which it removes."""

    def __init__(self, spec: Gpt2Spec, family: Family, weights: dict[str, torch.Tensor]):
        self.spec = spec
        self.layout = family.layout
        self.ends = [family.end_of_audio]
        self.mine = {
            name.removeprefix("depth."): weights.pop(name) for name in list(weights) if name.startswith("depth.")
        }
        self.starts = [sum(map(len, self.layout.audio[:s])) for s in range(len(self.layout.audio))]

    def product(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ self.mine[f"{name}.weight"].T + self.mine[f"{name}.bias"]

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.spec.eps)
        return scaled * self.mine[f"{name}.weight"] + self.mine[f"{name}.bias"]

    def rotated(self, x: torch.Tensor) -> torch.Tensor:
        """Rotate the heads x [n, heads, D] of positions 0 to n - 1. Feature i is paired with i + D / 2."""
        half = self.spec.head_dim // 2
        speeds = self.spec.rope["rope_theta"] ** (-torch.arange(half) / half)
        angles = torch.arange(len(x))[:, None, None] * speeds
        first = x[..., :half]
        second = x[..., half:]
        parts = first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()
        return torch.cat(parts, -1)

    def attend(self, x: torch.Tensor, layer: str) -> torch.Tensor:
        spec = self.spec
        query, key, value = (self.product(x, f"{layer}.{name}_proj") for name in "qkv")
        query = self.rotated(query.view(len(x), spec.num_heads, -1))
        shared = spec.num_heads // spec.num_kv_heads
        key = self.rotated(key.view(len(x), spec.num_kv_heads, -1)).repeat_interleave(shared, 1)
        value = value.view(len(x), spec.num_kv_heads, -1).repeat_interleave(shared, 1)
        scores = torch.einsum("qhd,khd->hqk", query, key) * spec.head_dim**-0.5
        scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -math.inf)
        out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).flatten(1)
        return self.product(out, f"{layer}.o_proj")

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor, ids: list[int], second: int | None = None) -> list[float]:
        rows = [self.starts[s] + token - self.layout.audio[s].start for s, token in enumerate(ids)]
        first = self.mine["project.weight"] @ hidden if self.spec.projection else hidden
        x = torch.cat([first[None], self.mine["embed"][rows[self.spec.num_first - 1 :]]])
        activate: Any = ACT2FN[self.spec.gpt2_activation]
        for number in range(self.spec.num_layers):
            layer = f"layers.{number}"
            x = x + self.attend(self.norm(x, f"{layer}.ln_1"), layer)
            opened = self.product(self.norm(x, f"{layer}.ln_2"), f"{layer}.fc_in")
            x = x + self.product(activate(opened), f"{layer}.fc_out")
        state = self.norm(x, "norm")[-1]
        ids_of_stream = [*self.layout.audio[len(ids)]]
        head = self.mine["heads"][len(ids) - 1] if ids else self.mine["first_head"]
        spread = torch.full((self.layout.vocab_size,), -math.inf)
        spread[ids_of_stream if ids else [*ids_of_stream, *self.ends]] = head @ state
        return spread.tolist()
