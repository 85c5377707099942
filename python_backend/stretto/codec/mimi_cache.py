"""Ring buffer of keys and values for transformers' sliding-window Mimi layers.

ring     0  1  2  …                             R - 1       R = window - 1 + block
holds   [ the last R steps; step p is in slot p mod R ]     a query at q attends to steps q - window + 1 … q

Steps are processed in blocks of at most `block`, so that writing a block overwrites only steps that none of its queries
attends to.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.models.mimi.modeling_mimi import MimiTransformerModel


@dataclass(frozen=True, slots=True)
class Ring:
    """Rings [B, layers, 2, heads, R, head_dim] of B utterances; each layer writes `slots` [B, n] in place."""

    rings: Tensor
    slots: Tensor

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store new keys and values [B, heads, n, head_dim]; return all of the layer, [B, heads, R, head_dim]."""
        rows = torch.arange(len(self.slots), device=self.slots.device)[:, None]
        for part, new in enumerate((keys, values)):
            self.rings[rows, layer, part, :, self.slots] = new.transpose(1, 2).to(self.rings.dtype)
        return self.rings[:, layer, 0], self.rings[:, layer, 1]


class RingTransformer:
    """Mimi transformer that continues from rings owned by the caller."""

    def __init__(self, transformer: MimiTransformerModel, block: int = 32) -> None:
        config = transformer.config
        self._transformer = transformer
        self._window = config.sliding_window
        self._block = block
        self.size = self._window - 1 + block
        assert config.head_dim is not None, "MimiConfig fills it in"
        self.shape = (config.num_hidden_layers, 2, config.num_key_value_heads, self.size, config.head_dim)

    def advance(self, steps: Tensor, first: Tensor, rings: Tensor) -> Tensor:
        """Return outputs [B, n, H] of steps [B, n, H] at positions first [B] + 0 … n - 1; updates `rings`."""
        outputs = []
        for start in range(0, steps.shape[1], self._block):
            block = steps[:, start : start + self._block]
            positions = first[:, None] + torch.arange(start, start + block.shape[1], device=first.device)
            outputs.append(self._advance_block(block, positions, rings))
        return torch.cat(outputs, 1)

    def visible(self, positions: Tensor) -> Tensor:
        """Return which slots the queries at positions [B, n] attend to after these are written: bool [B, 1, n, R]."""
        slot = torch.arange(self.size, device=positions.device)
        newest = positions[:, -1:]
        held = newest - (newest - slot) % self.size  # [B, R]: step in each slot, negative if empty
        distance = positions[:, :, None] - held[:, None]
        return ((held[:, None] >= 0) & (distance >= 0) & (distance < self._window))[:, None]

    def _advance_block(self, hidden: Tensor, positions: Tensor, rings: Tensor) -> Tensor:
        rotation = self._transformer.rotary_emb(hidden, positions)
        ring, mask = Ring(rings, positions % self.size), self.visible(positions)
        for layer in self._transformer.layers:
            hidden = layer(hidden, attention_mask=mask, past_key_values=ring, position_embeddings=rotation)[0]
        return hidden
