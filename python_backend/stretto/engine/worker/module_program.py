"""Modules over as many rows of every request, on buffers that stay where they are: what a CUDA graph of them wants.

In a step that reads no prompt, each request of the batch has the last `window` rows that it has read taken through the
modules, or its first ones where it has fewer. What the modules have read of these already, and rows of requests that
they do not read, are computed and nowhere written. So the launches are the same for a module and a number of requests,
and what differs from step to step lies in a few tables that are uploaded before.
"""

from typing import Any

import numpy as np
import torch

from stretto.engine.worker.module_attention import ModuleAttention, Spans
from stretto.engine.worker.row_predictor import BurstBatch, SaidRows
from stretto.engine.worker.step_graphs import Recorder, StepGraphs

# Of every row: its slot and position; where its hidden state stands in this step, or whether in the ring; whether
# modules read it now. Of every request: its slot, and which of the rows is its last.
SLOT, POSITION, NOW, IS_KEPT, IS_READ = range(5)
NOWHERE = -1  # vLLM's PAD_SLOT_ID: keys and values that are not written


class ModuleProgram:
    """The launches, a graph for each module and padded number of requests where `recorder` records them.

    ring [R, window, H]: the model's hidden states of the last rows of each slot. hidden [R, H]: what the module that
    ran has made of each request's last row.
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
        """Capture all modules at all sizes before the first request; no row is anybody's."""
        self._rows.zero_()
        for size in self._graphs.sizes:
            self._build(size, np.full(size, self._window, np.int32))
            self._graphs.capture(range(self._num_modules), [size])

    def prepare(self, step: BurstBatch, first: np.ndarray) -> None:
        """Read the rows from `first` [B] on of each request of `step`; none where that is its last."""
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
        """Take the rows through a module, behind those before it: what it makes of the last of each request, [B, H]."""
        self._graphs.run(module, num_reqs)
        return self.hidden[:num_reqs]

    def _build(self, size: int, lengths: np.ndarray) -> None:
        """Tell attention of `size` requests; a graph reads what lies in the buffers, anew for each step."""
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
