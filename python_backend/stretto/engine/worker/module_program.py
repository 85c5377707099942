"""MCTP modules over a fixed number of rows per request, on buffers with fixed addresses, for CUDA graphs.

In a step without prompt rows the last `window` rows of each request (or its first rows if it has fewer) pass through
the modules. Rows that the modules have processed before, or need not process, are computed but not stored. The launches
are therefore the same for a given module and number of requests; what differs between steps is uploaded in small
tables.
"""

from typing import Any

import numpy as np
import torch

from stretto.engine.worker.module_attention import ModuleAttention, Spans
from stretto.engine.worker.row_predictor import BurstBatch, SaidRows
from stretto.engine.worker.step_graphs import Recorder, StepGraphs

# Per row: slot, position, index of its hidden state in this step, True if that is in the ring instead, and True if
# modules process it now. Per request: slot, and index of its last row.
SLOT, POSITION, NOW, IS_KEPT, IS_READ = range(5)
NOWHERE = -1  # vLLM's PAD_SLOT_ID: keys and values are not stored


class ModuleProgram:
    """Launches of the modules, with a graph per module and padded number of requests if `recorder` is given.

    Args:
        model: Model with `run_module`.
        said: Embedded rows.
        ring: The model's hidden states of the last rows of each slot, [R, window, H].
        attention: Attention metadata of the modules.
        recorder: Recorder of graphs, or None.

    Attributes:
        hidden: Output of the last module run for each request's last row, [R, H].
    """

    def __init__(
        self, model: Any, said: SaidRows, ring: torch.Tensor, attention: ModuleAttention, recorder: Recorder | None
    ):
        self._model, self._said, self._ring, self._attention = model, said, ring, attention
        self._num_modules = model.family.bursts.num_modules
        num_reqs, self._window, width = ring.shape
        num_rows, device = num_reqs * self._window, ring.device
        self._rows = torch.zeros(5, num_rows, dtype=torch.int64, device=device)
        self._requests = torch.zeros(2, num_reqs, dtype=torch.int64, device=device)
        self._lengths = torch.zeros(num_reqs, dtype=torch.int32, device=device)
        self._begin = np.arange(num_reqs + 1, dtype=np.int32) * self._window
        self._begin_there = torch.from_numpy(self._begin).to(device)
        self._states, self.hidden = ring.new_zeros(num_rows, width), ring.new_zeros(num_reqs, width)
        self._size, self._metadata = 0, dict[str, Any]()
        max_captured = min(num_reqs, attention.max_captured_rows // self._window)
        self._graphs = StepGraphs(self._launch, num_reqs, recorder, lambda module, num_reqs: num_reqs <= max_captured)

    def capture(self) -> None:
        """Capture all modules at all sizes before the first request, while no row belongs to a request."""
        self._rows.zero_()
        for size in self._graphs.sizes:
            self._build(size, np.full(size, self._window, np.int32))
            self._graphs.capture(range(self._num_modules), [size])

    def prepare(self, step: BurstBatch, first: np.ndarray) -> None:
        """Prepare a step that processes rows `first` [B] and up of each request."""
        batch, window, num_reqs = step.batch, self._window, step.batch.num_reqs
        size = self._graphs.padded(num_reqs)
        begin = np.maximum(step.num_read - window, 0)
        positions = begin[:, None] + np.arange(window)
        behind = positions - batch.num_computed_tokens_np[:, None]
        now = batch.query_start_loc_np[:num_reqs, None] + behind
        rows = np.zeros((len(self._rows), size, window), np.int64)
        mine = rows[:, :num_reqs]
        mine[SLOT], mine[POSITION] = batch.idx_mapping_np[:, None], positions
        mine[NOW] = np.clip(now, 0, batch.num_tokens - 1)
        mine[IS_KEPT] = behind < 0
        mine[IS_READ] = (positions >= first[:, None]) & (positions < step.num_read[:, None])
        requests = np.zeros((2, size), np.int64)
        requests[0, :num_reqs] = batch.idx_mapping_np
        requests[1] = np.arange(size) * window
        requests[1, :num_reqs] += step.num_read - 1 - begin
        lengths = np.full(size, window, np.int32)
        lengths[:num_reqs] += begin.astype(np.int32)
        upload, tensor = self._said.arrays.upload, self._said.arrays.tensor
        self._rows[:, : size * window] = tensor(upload(rows.reshape(len(rows), -1)))
        self._requests[:, :size] = tensor(upload(requests))
        self._build(size, lengths)

    def run(self, module: int, num_reqs: int) -> torch.Tensor:
        """Run a module over the prepared rows; return its output for each request's last row, [B, H]."""
        self._graphs.run(module, num_reqs)
        return self.hidden[:num_reqs]

    def _build(self, size: int, lengths: np.ndarray) -> None:
        """Update the attention metadata for `size` requests; graphs read it from the buffers in each step."""
        arrays = self._said.arrays
        self._lengths[:size] = arrays.tensor(arrays.upload(lengths))
        begin = self._begin[: size + 1]
        self._size, self._metadata = (
            size,
            self._attention.metadata(self._spans(size), begin, lengths, self._attention.max_length),
        )

    def _spans(self, size: int) -> Spans:
        positions = self._rows[POSITION, : size * self._window]
        return Spans(self._requests[0, :size], self._begin_there[: size + 1], self._lengths[:size], positions)

    def _launch(self, module: int, size: int) -> None:
        assert size == self._size, f"{self._size} requests were prepared, not {size}"
        num_rows = size * self._window
        rows, states = self._rows[:, :num_rows], self._states[:num_rows]
        if module == 0:
            mapping = self._attention.map(self._spans(size))
            mapping.masked_fill_(rows[IS_READ] == 0, NOWHERE)
            kept = self._ring[rows[SLOT], rows[POSITION] % self._window]
            is_kept = rows[IS_KEPT].bool()[:, None]
            torch.where(is_kept, kept, self._model.rows_hidden[rows[NOW]], out=states)
        with self._attention.reads(self._metadata, num_rows):
            embeds = self._said.embed(rows[SLOT], rows[POSITION] + (module + 1))
            states.copy_(self._model.run_module(module, embeds, states, rows[POSITION]))
        torch.index_select(states, 0, self._requests[1, :size], out=self.hidden[:size])
