"""Slow reference of a request's conditions: added vectors, and cross-attention within a transformers model."""

import math
from typing import Any

import numpy as np
import torch

from stretto.records.prompt import Condition
from stretto.testing import ReferenceConditions
from stretto_kyutai.kyutai_tts.mechanism.speakers import SpeakerConditions


class ConditionReference(ReferenceConditions):
    """Conditions of the reply that a model generates."""

    spec: SpeakerConditions

    def random_weights(self, config: dict[str, Any], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Return the tensors of conditions and cross-attention, named as `stretto convert` writes them."""
        hidden = config["hidden_size"]
        weights = {
            "conditions.sum.weight": torch.randn(self.spec.num_ids, hidden, generator=generator) * 0.7,
            "conditions.project.weight": torch.randn(hidden, self.spec.vector_width, generator=generator),
            "conditions.absent": torch.randn(hidden, generator=generator),
        }
        for layer in range(config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}.cross_"
            for name, rows in (("query_proj", hidden), ("kv_proj", 2 * hidden), ("o_proj", hidden)):
                weight = torch.randn(rows, hidden, generator=generator) * (1.5 * hidden**-0.5)
                weights[f"{prefix}attn.{name}.weight"] = weight
            weights[f"{prefix}norm.weight"] = torch.linspace(0.8, 1.2, hidden)
            weights[f"{prefix}norm.bias"] = torch.linspace(-0.2, 0.2, hidden)
        return weights

    def random_condition(self, index: int) -> Condition | None:
        """Return the condition of test prompt `index`, with all, some or no vectors; None for every fifth one."""
        spec = self.spec
        if index % 5 == 4:
            return None
        random = np.random.default_rng(index)
        num_vectors = (spec.vector_rows, spec.vector_rows // 3, 0)[index % 3]
        ids = random.integers(0, spec.num_ids, index % 4)
        vectors = random.standard_normal((num_vectors, spec.vector_width)).astype(np.float32)
        return Condition(tuple(ids.tolist()), vectors)

    def attach(self, weights: dict[str, torch.Tensor], model: Any) -> None:
        """Remove `conditions.…` and `cross_…` from the weights, and add cross-attention to the layers of `model`."""
        self.num_heads = model.config.num_attention_heads
        mine = [name for name in weights if name.startswith("conditions.") or ".cross_" in name]
        self.mine = {name.removeprefix("model.layers."): weights.pop(name) for name in mine}
        self.use(None)
        for number, layer in enumerate(model.model.layers):
            self.attach_to(layer, number)

    def attach_to(self, layer: Any, number: int) -> None:
        """Add cross-attention to the output of a layer's self-attention."""
        entered = list[torch.Tensor]()

        def behind(_: object, args: object, output: Any) -> Any:
            return output[0] + self.attend(entered.pop() + output[0], number), *output[1:]

        layer.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
        layer.self_attn.register_forward_hook(behind)

    def use(self, condition: Condition | None) -> None:
        """Use `condition` from now on; None for no added vectors and only absent speaker vectors."""
        used = condition or Condition((), np.zeros((0, self.spec.vector_width), np.float32))
        self.added = torch.zeros(len(self.mine["conditions.absent"]))
        for token in used.ids:
            self.added = self.added + self.mine["conditions.sum.weight"][token]
        rows = []
        half = len(self.added) // 2
        for number in range(self.spec.vector_rows):
            row = self.mine["conditions.absent"]
            if number < len(used.vectors):
                row = self.mine["conditions.project.weight"] @ torch.from_numpy(used.vectors[number])
            angles = [number / 10_000 ** (at / (half - 1)) for at in range(half)]
            rows.append(row + torch.tensor([*map(math.cos, angles), *map(math.sin, angles)]))
        self.vectors = torch.stack(rows)

    @torch.no_grad()
    def attend(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        """Return the output of a layer's cross-attention for x [1, n, H]."""
        norm = f"{layer}.cross_norm."
        weights = f"{layer}.cross_attn."
        centred = x - x.mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        normed = normed * self.mine[norm + "weight"] + self.mine[norm + "bias"]
        query = (normed @ self.mine[weights + "query_proj.weight"].T).unflatten(-1, (self.num_heads, -1))
        both = self.vectors @ self.mine[weights + "kv_proj.weight"].T
        keys, values = both.unflatten(-1, (2, self.num_heads, -1)).unbind(1)
        scores = torch.einsum("bnhd,vhd->bhnv", query, keys) / math.sqrt(query.shape[-1])
        attended = torch.einsum("bhnv,vhd->bnhd", scores.softmax(-1), values).flatten(2)
        return attended @ self.mine[weights + "o_proj.weight"].T
