"""From hidden states to further rows: the seam between modules that say rows in one step, and what draws them.

    hidden ──say──► row 0 ──► RowPredictor ──hidden──say──► row 1 ──► RowPredictor ──hidden──say──► row 2 ...

`say` draws a row of every reply that has one more to say, all its streams, as any other row is drawn: logits of pairs
merged, masked, with the noise of its position. What was said stands in the tables before it returns, for the predictor
to read (`SaidRows`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.input_batch import InputBatch

from stretto.engine.kernels.gpu.gather import gather_rows
from stretto.engine.worker.arrays import Array, Arrays

# Hidden states [B, H] of a row of each request of the batch, and how many rows behind the step's first it stands.
Say = Callable[[torch.Tensor, int], None]


@dataclass(frozen=True)
class BurstBatch:
    """The batch of a step.

    num_read [B]: how many rows of each request have been read with this step; the first that it says stands there.
    num_extra [B]: how many it says behind that. is_read [B]: whether modules read its rows at all.
    """

    batch: InputBatch
    num_read: np.ndarray
    num_extra: np.ndarray
    is_read: np.ndarray


class RowPredictor(Protocol):
    """What says further rows in a step."""

    def bind(self, kv_cache_config: KVCacheConfig, block_tables: BlockTables) -> None:
        """Keep what it must in the KV cache that has been allocated."""
        ...

    def capture(self) -> None:
        """Capture what graphs there are before the first request."""
        ...

    def place(self, slot: int, num_read: int) -> None:
        """A request has got `slot`; `num_read` of its rows have been read by others, whose blocks it shares."""
        ...

    def __call__(self, hidden: torch.Tensor, step: BurstBatch, say: Say) -> None:
        """Say the rows behind the first, which has been said from `hidden` [B, H].

        Called in every step, also in those in which nobody says more: prompts pass by here.
        """
        ...


class SaidRows:
    """Rows of all streams, read or only just said, by slot and position.

    tokens [R, T] int32: stream 0 of every slot. codes [R, T + 1, S - 1] int32: the others. arrays: as they lie.
    """

    def __init__(self, model: Any, tokens: torch.Tensor, codes: torch.Tensor, arrays: Arrays, pad_id: int):
        self.arrays, self._model, self._pad_id = arrays, model, pad_id
        self._tokens, self._codes = arrays.of(tokens), codes
        self._table = model.get_submodule("model.embed_tokens").get_parameter("weight")

    def embed(self, slots: Array, positions: Array) -> torch.Tensor:
        """The embedded rows at `slots` and `positions`, [N] int64 each: [N, H]; beyond the model's length any."""
        rows = self._codes.new_empty(len(slots), 1 + self._codes.shape[2])
        positions = self.arrays.xp.clip(positions, 0, self._tokens.shape[1] - 1)
        gather_rows(rows, self._tokens[slots, positions], slots, positions, self._codes, self._pad_id)
        return self._model.embed_rows(rows, self._table.new_empty(len(slots), self._table.shape[1]))
