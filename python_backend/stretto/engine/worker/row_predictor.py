"""Interface between modules that generate further rows in a step and the draw.

    hidden ──draw──► row 0 ──► RowPredictor ──hidden──draw──► row 1 ──► RowPredictor ──hidden──draw──► row 2 ...

The callback `Say` draws all streams of a row for every reply that generates one more, with guidance, masks and noise as
for any other row. The row is in the tables before it returns, so that the predictor can read it (`SaidRows`).
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

# (hidden states [B, H], index of the row in the step) -> None; draws and records the row.
Say = Callable[[torch.Tensor, int], None]


@dataclass(frozen=True)
class BurstBatch:
    """Batch of a multi-token step.

    Attributes:
        batch: vLLM's batch.
        num_read: Number of computed rows of each request after this step, [B]; the first generated row has that index.
        num_extra: Number of rows generated after that one, [B].
        is_read: True if modules process the request's rows, [B].
    """

    batch: InputBatch
    num_read: np.ndarray
    num_extra: np.ndarray
    is_read: np.ndarray


class RowPredictor(Protocol):
    """Predictor of further rows in a step."""

    def bind(self, kv_cache_config: KVCacheConfig, block_tables: BlockTables) -> None:
        """Use the allocated KV cache."""
        ...

    def capture(self) -> None:
        """Capture graphs before the first request."""
        ...

    def place(self, slot: int, num_read: int) -> None:
        """Record a request in `slot` of which `num_read` rows come from the prefix cache."""
        ...

    def __call__(self, hidden: torch.Tensor, step: BurstBatch, say: Say) -> None:
        """Generate the rows after the first, which has been drawn from `hidden` [B, H].

        Called in every step, even if no request generates more rows, because prompt rows must pass through the modules.
        """
        ...


class SaidRows:
    """Embedded rows of all streams by slot and position.

    Args:
        model: Model with `embed_rows`.
        tokens: Stream 0 of every slot, int32 [R, T].
        codes: The other streams, int32 [R, T + 1, S - 1].
        arrays: Array factory.
        pad_id: Id of empty streams.
    """

    def __init__(self, model: Any, tokens: torch.Tensor, codes: torch.Tensor, arrays: Arrays, pad_id: int):
        self.arrays, self._model, self._pad_id = arrays, model, pad_id
        self._tokens, self._codes = arrays.of(tokens), codes
        self._table = model.get_submodule("model.embed_tokens").get_parameter("weight")

    def embed(self, slots: Array, positions: Array) -> torch.Tensor:
        """Return the embedded rows [N, H] at `slots` and `positions`, int64 [N]; out-of-range rows are undefined."""
        rows = self._codes.new_empty(len(slots), 1 + self._codes.shape[2])
        positions = self.arrays.xp.clip(positions, 0, self._tokens.shape[1] - 1)
        gather_rows(rows, self._tokens[slots, positions], slots, positions, self._codes, self._pad_id)
        return self._model.embed_rows(rows, self._table.new_empty(len(slots), self._table.shape[1]))
