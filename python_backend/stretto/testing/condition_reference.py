"""Slow reference of a request's conditions: added vectors, and cross-attention within a transformers model."""

import math
from typing import Any, cast

import numpy as np
import torch

from stretto.families.base import ConditionSpec, Family
from stretto.records.prompt import Condition


class ConditionReference:
    """Conditions of the reply that a model generates.

    Their weights are the `conditions.…` and `cross_…` tensors, which are removed from `weights`. Hooks add
    cross-attention to the layers of `model`.

    Attributes:
        added: Vector that is added to every row, [H].
    """

    def __init__(self, family: Family, weights: dict[str, torch.Tensor], model: Any):
        self.spec, self.num_heads = cast(ConditionSpec, family.conditions), model.config.num_attention_heads
        mine = [name for name in weights if name.startswith("conditions.") or ".cross_" in name]
        self.mine = {name.removeprefix("model.layers."): weights.pop(name) for name in mine}
        self.place(None)
        for number, layer in enumerate(model.model.layers):
            self.attach(layer, number)

    def attach(self, layer: Any, number: int) -> None:
        """Add cross-attention to the output of a layer's self-attention."""
        entered = list[torch.Tensor]()

        def behind(_: object, args: object, made: Any) -> Any:
            return made[0] + self.attend(entered.pop() + made[0], number), *made[1:]

        layer.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
        layer.self_attn.register_forward_hook(behind)

    def place(self, condition: Condition | None) -> None:
        """Use `condition` from now on; None for no added vectors and only absent speaker vectors."""
        given = condition or Condition((), np.zeros((0, self.spec.vector_width), np.float32))
        self.added = torch.zeros(len(self.mine["conditions.absent"]))
        for token in given.ids:
            self.added = self.added + self.mine["conditions.sum.weight"][token]
        rows, half = [], len(self.added) // 2
        for place in range(self.spec.vector_rows):
            row = self.mine["conditions.absent"]
            if place < len(given.vectors):
                row = self.mine["conditions.project.weight"] @ torch.from_numpy(given.vectors[place])
            angles = [place / 10_000 ** (at / (half - 1)) for at in range(half)]
            rows.append(row + torch.tensor([*map(math.cos, angles), *map(math.sin, angles)]))
        self.vectors = torch.stack(rows)

    @torch.no_grad()
    def attend(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        """Return the output of a layer's cross-attention for x [1, n, H]."""
        norm, weights = f"{layer}.cross_norm.", f"{layer}.cross_attn."
        centred = x - x.mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        normed = normed * self.mine[norm + "weight"] + self.mine[norm + "bias"]
        query = (normed @ self.mine[weights + "query_proj.weight"].T).unflatten(-1, (self.num_heads, -1))
        both = self.vectors @ self.mine[weights + "kv_proj.weight"].T
        keys, values = both.unflatten(-1, (2, self.num_heads, -1)).unbind(1)
        scores = torch.einsum("bnhd,vhd->bhnv", query, keys) / math.sqrt(query.shape[-1])
        attended = torch.einsum("bhnv,vhd->bnhd", scores.softmax(-1), values).flatten(2)
        return attended @ self.mine[weights + "o_proj.weight"].T
