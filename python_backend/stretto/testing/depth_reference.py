"""Slow depth transformers: one that uses transformers classes, and one in plain torch with per-position weights."""

import math
from typing import Any, Protocol, cast

import torch
from transformers import LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model

from stretto.family.base import DepthSpec, Family


class SlowDepth(Protocol):
    """Slow depth transformer (`DepthSpec.reference`)."""

    def logits(self, hidden: torch.Tensor, ids: list[int], second: int | None = None) -> list[float]:
        """Return the logits over the vocabulary of the next stream in a row with the hidden state [H].

        Args:
            ids: Ids of the previous streams.
            second: Id of the second text stream in the row; None if the family has none.
        """
        ...


class DepthReference:
    """Slow depth transformer, created from the `depth.…` tensors, which are removed from `weights`."""

    def __init__(self, family: Family, weights: dict[str, torch.Tensor]):
        spec = cast(DepthSpec, family.depth)
        config_class = cast(Any, LlamaConfig)
        model_class = cast(Any, LlamaModel)
        if spec.has_head_norms:
            config_class = Qwen3Config
            model_class = Qwen3Model
        mine = {name.removeprefix("depth."): weights.pop(name) for name in list(weights) if name.startswith("depth.")}
        self.layout = family.layout
        self.num_first = spec.num_first
        config = config_class(
            vocab_size=1,
            hidden_size=spec.hidden,
            intermediate_size=spec.intermediate,
            num_hidden_layers=spec.num_layers,
            num_attention_heads=spec.num_heads,
            num_key_value_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            rms_norm_eps=spec.eps,
            rope_parameters=dict(spec.rope),
        )
        self.first_head, self.heads, self.embed = (mine.pop(name) for name in ("first_head", "heads", "embed"))
        self.project = mine.pop("project.weight") if spec.projection else torch.eye(spec.hidden)
        self.bias = mine.pop("project.bias") if spec.projection == "biased" else torch.zeros(spec.hidden)
        self.ends = [] if family.end_frame else [family.end_of_audio]
        self.model = model_class(config).float().eval()
        named = {"embed_tokens.weight": torch.zeros(1, spec.hidden), "norm.weight": mine.pop("norm.weight")}
        for name, tensor in mine.items():
            layer_name = name.split(".")[2]
            module = "mlp." if "proj" in layer_name else ""
            if layer_name[:2] in ("q_", "k_", "v_", "o_"):
                module = "self_attn."
            named[name.replace(layer_name, module + layer_name)] = tensor
        self.model.load_state_dict(named)

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor, ids: list[int], second: int | None = None) -> list[float]:
        """Return the logits of the next stream in a row; see `SlowDepth`. There is no second text stream."""
        size = self.layout.codebook_size
        if not ids and not self.num_first:
            return self._spread(self.first_head @ hidden, [*self.layout.audio[0], *self.ends])
        before = [self.embed[s * size + code - self.layout.audio[s].start] for s, code in enumerate(ids)]
        embeds = torch.stack([self.project @ hidden + self.bias, *before])
        state = self.model(inputs_embeds=embeds[None], use_cache=False).last_hidden_state[0, -1]
        if not ids:
            return self._spread(self.first_head @ state, [*self.layout.audio[0], *self.ends])
        return self._spread(self.heads[len(ids) - 1] @ state, list(self.layout.audio[len(ids)]))

    def _spread(self, logits: torch.Tensor, ids: list[int]) -> list[float]:
        spread = torch.full((self.layout.vocab_size,), -math.inf)
        spread[ids] = logits
        return spread.tolist()


class SteppedReference:
    """Slow depth transformer with per-position weights, created from the `depth.…` tensors, which are removed.

    All positions of a row are recomputed for each stream.
    """

    def __init__(self, family: Family, weights: dict[str, torch.Tensor]):
        self.spec = cast(DepthSpec, family.depth)
        self.layout = family.layout
        self.second_ids = family.second_ids
        self.mine = {
            name.removeprefix("depth."): weights.pop(name) for name in list(weights) if name.startswith("depth.")
        }
        self.starts = [sum(map(len, self.layout.audio[:s])) for s in range(len(self.layout.audio))]

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.spec.eps) * self.mine[name]

    def product(self, x: torch.Tensor, layer: int, module: str) -> torch.Tensor:
        """Multiply x [n, W], for positions 0 to n - 1, by the weights of each position."""
        names = [f"layers.{layer}.sets.{index}.{module}.weight" for index in self.spec.schedule[: len(x)]]
        return torch.stack([self.mine[name] @ row for name, row in zip(names, x, strict=True)])

    def attend(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        spec = self.spec
        query, key, value = (self.product(x, layer, f"{name}_proj") for name in "qkv")
        query = query.view(len(x), spec.num_heads, -1)
        key, value = (
            projected.view(len(x), spec.num_kv_heads, -1).repeat_interleave(spec.num_heads // spec.num_kv_heads, 1)
            for projected in (key, value)
        )
        scores = torch.einsum("qhd,khd->hqk", query, key) * spec.head_dim**-0.5
        scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -math.inf)
        return self.product(torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).flatten(1), layer, "o_proj")

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor, ids: list[int], second: int | None = None) -> list[float]:
        spread = torch.full((self.layout.vocab_size,), -math.inf)
        if not ids:
            spread[list(self.layout.audio[0])] = self.mine["first_head"] @ hidden
            return spread.tolist()
        projected = (self.mine["project.weight"] @ hidden).view(self.spec.num_sets, -1)
        rows = [self.starts[s] + token - self.layout.audio[s].start for s, token in enumerate(ids)]
        x = projected[list(self.spec.schedule[: len(ids)])] + self.mine["embed"][rows]
        if second is not None and second in self.second_ids:
            x[0] += self.mine["embed"][self.starts[-1] + second - self.second_ids.start]
        for layer in range(self.spec.num_layers):
            x = x + self.attend(self.norm(x, f"layers.{layer}.input_layernorm.weight"), layer)
            normed = self.norm(x, f"layers.{layer}.post_attention_layernorm.weight")
            gate, up = (self.product(normed, layer, f"{name}_proj") for name in ("gate", "up"))
            x = x + self.product(torch.nn.functional.silu(gate) * up, layer, "down_proj")
        spread[list(self.layout.audio[len(ids)])] = self.mine["heads"][len(ids) - 1] @ x[-1]
        return spread.tolist()


def depth_reference(family: Family, weights: dict[str, torch.Tensor]) -> SlowDepth:
    """Return the slow depth transformer of a family, whose tensors are removed from `weights`."""
    spec = cast(DepthSpec, family.depth)
    if spec.reference is not None:
        slow: SlowDepth = spec.reference(family, weights)
        return slow
    return (SteppedReference if spec.schedule else DepthReference)(family, weights)
