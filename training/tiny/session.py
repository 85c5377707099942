"""Batched generation in plain torch, for sequences that grow row by row with a key-value cache."""

import numpy as np
import torch
from torch import Tensor

from stretto.families.tiny import family as tiny
from training.tiny.network import KeyValues, Network, Pass


class Session:
    """Batch of B prompts, padded on the left and masked. `hidden` [B, H] is the hidden state of the last row."""

    def __init__(self, network: Network, prompts: list[np.ndarray]):
        self._network = network
        longest = max(len(prompt) for prompt in prompts)
        ids = np.full((len(prompts), longest, tiny.LAYOUT.num_input_streams), tiny.PAD, dtype=np.int64)
        for index, prompt in enumerate(prompts):
            ids[index, longest - len(prompt) :] = prompt
        self._padding = torch.tensor([longest - len(prompt) for prompt in prompts])
        self._caches = [KeyValues() for _ in network.model.layers]
        self._length = 0
        self.hidden = self._read(torch.from_numpy(ids))

    def _read(self, ids: Tensor) -> Tensor:
        """Read new rows [B, T, 9]; return the hidden state [B, H] of the last one."""
        start = self._length
        self._length = self._length + ids.shape[1]
        row = torch.arange(start, self._length)
        column = torch.arange(self._length)
        position = (row - self._padding[:, None]).clamp(min=0)
        hidden = (column < self._padding[:, None])[:, None] | (column > row[:, None])
        hidden = hidden & (
            column != row[:, None]
        )  # a padding row attends to itself, because a softmax needs at least one entry
        mask = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)[:, None]
        cos, sin = self._network.model.angles(position)
        shared = Pass(cos[:, None], sin[:, None], mask, self._caches)
        return self._network.model(self._network.model.embed(ids), shared)[:, -1]

    def step(self, rows: Tensor) -> Tensor:
        """Append one row [B, 9] per sequence and return the new `hidden`."""
        self.hidden = self._read(rows[:, None])
        return self.hidden
