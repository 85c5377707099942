"""Further rows per step by MCTP modules: VITA-Audio's multiple cross-modal token prediction (arXiv 2505.03739).

A module is a decoder layer with its own KV cache. For row j it reads the previous module's output for row j (module 0:
the model's last hidden state) and the embedding of row j + k + 1. Module k therefore generates row j + k + 2:

    row        j         j + 1     j + 2     j + 3          j: the last row that the model has computed in this step
    model      h ─draw─► row 0
    module 0   h + row 0 ────────► row 1
    module 1        h' + row 1 ────────────► row 2          each row is drawn, recorded, and read by the next module
    module 2               h" + row 2 ────────────► …

No row after j is computed, so modules need no KV blocks beyond those granted by the scheduler. Rows that a module could
not process yet, because later ids were unknown or steps generated single rows, are processed with the next multi-token
step. For that purpose the hidden states of the last `window` rows of every slot are kept. If the schedule has no
multi-token step for longer than that, they are processed before they are overwritten. Prompt rows pass through all
modules chunk by chunk.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.block_table import BlockTables

from stretto.engine.worker.cuda_graphs import recorder_of
from stretto.engine.worker.module_attention import ModuleAttention, Spans
from stretto.engine.worker.module_program import ModuleProgram
from stretto.engine.worker.row_predictor import BurstBatch, SaidRows, Say
from stretto.families.bursts import Bursts


@dataclass(frozen=True)
class Runs:
    """Rows that modules process in a step; all arrays are int64 [n] on the host.

    Attributes:
        index: Request in the batch.
        slots: Its run slot.
        first: First row.
        stop: Row after the last.
    """

    index: np.ndarray
    slots: np.ndarray
    first: np.ndarray
    stop: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        return self.stop - self.first


class ModuleRows:
    """MCTP modules over the rows of all slots; all row bookkeeping is on the host."""

    def __init__(self, model: Any, said: SaidRows, bursts: Bursts, vllm_config: VllmConfig):
        self._model, self._said, self._bursts, self._vllm_config = model, said, bursts, vllm_config
        self._num_slots = vllm_config.scheduler_config.max_num_seqs
        hidden = model.rows_hidden
        self._ring = hidden.new_zeros(self._num_slots, bursts.window, hidden.shape[1])
        self._program: ModuleProgram | None = None
        self._unread = np.zeros(self._num_slots, np.int64)  # first row of each slot that some module has not processed

    def bind(self, kv_cache_config: KVCacheConfig, block_tables: BlockTables) -> None:
        """Use the allocated KV cache."""
        config, layers = self._vllm_config, self._model.module_attention()
        num_rows = block_tables.slot_mappings.shape[1] + self._num_slots * self._bursts.window
        self._attention = ModuleAttention(config, kv_cache_config, block_tables, layers, num_rows)
        if self._said.arrays.xp is np:
            return
        # Tensor-parallel ranks exchange partial sums in every layer, which cannot be captured.
        is_alone = config.parallel_config.tensor_parallel_size == 1
        recorder = recorder_of(self._ring.device, config) if is_alone else None
        self._program = ModuleProgram(self._model, self._said, self._ring, self._attention, recorder)

    def capture(self) -> None:
        """Capture graphs before the first request."""
        if self._program is not None:
            self._program.capture()

    def place(self, slot: int, num_read: int) -> None:
        """Record a request in `slot` of which `num_read` rows come from the prefix cache."""
        self._unread[slot] = num_read

    def __call__(self, hidden: torch.Tensor, step: BurstBatch, say: Say) -> None:
        """Generate the rows after the first one of a step."""
        runs = self._runs(step)
        if len(runs.index):
            if self._program is None or step.batch.is_prefilling_np[runs.index].any():
                self._run(hidden, step, runs, say)
            else:
                self._run_uniform(self._program, step, runs, say)
        self._keep(step)

    def _runs(self, step: BurstBatch) -> Runs:
        """Return prompt chunks, requests that generate more rows, and requests with rows about to be overwritten."""
        batch, stop = step.batch, step.num_read
        unread = self._unread[batch.idx_mapping_np]
        is_late = stop - unread >= self._bursts.window
        index = np.flatnonzero(step.is_read & (batch.is_prefilling_np | (step.num_extra > 0) | is_late))
        slots, stop = batch.idx_mapping_np[index], stop[index]
        prefill_len = batch.prefill_len_np[index].astype(np.int64)
        # The last module processes a row once the num_modules ids after it are known.
        num_known = np.where(stop < prefill_len, prefill_len, stop + 1 + step.num_extra[index])
        self._unread[slots] = np.clip(num_known - self._bursts.num_modules, unread[index], stop)
        return Runs(index, slots, unread[index], stop)

    def _run(self, hidden: torch.Tensor, step: BurstBatch, runs: Runs, say: Say) -> None:
        """Run all modules over the rows of `runs`; each draws a row for every request that generates one more."""
        upload = self._said.arrays.upload
        which = np.repeat(np.arange(len(runs.index)), runs.counts)
        starts = np.concatenate([[0], np.cumsum(runs.counts)])
        positions = runs.first[which] + np.arange(starts[-1]) - starts[which]
        slots, at = upload(runs.slots[which]), upload(positions)
        states, position = self._hidden(step, runs, which, positions), self._tensor(positions)
        last, index = self._tensor(starts[1:] - 1), self._tensor(runs.index)
        with self._read_by_attention(runs, starts.astype(np.int32), position):
            for k in range(self._bursts.num_modules):
                states = self._model.run_module(k, self._said.embed(slots, at + (k + 1)), states, position)
                if (step.num_extra > k).any():
                    of_batch = hidden.new_zeros(hidden.shape)
                    of_batch[index] = states[last]
                    say(of_batch, k + 1)

    def _run_uniform(self, program: ModuleProgram, step: BurstBatch, runs: Runs, say: Say) -> None:
        """Do the same with launches that do not depend on which rows are processed."""
        first = step.num_read.copy()
        first[runs.index] = runs.first
        program.prepare(step, first)
        for k in range(self._bursts.num_modules):
            states = program.run(k, step.batch.num_reqs)
            if (step.num_extra > k).any():
                say(states, k + 1)

    def _hidden(self, step: BurstBatch, runs: Runs, which: np.ndarray, positions: np.ndarray) -> torch.Tensor:
        """Return the model's hidden states of rows, [N, H], from this step or the ring."""
        batch, of_run = step.batch, runs.index[which]
        behind = positions - batch.num_computed_tokens_np[of_run]
        now = self._tensor(np.maximum(batch.query_start_loc_np[of_run] + behind, 0))
        kept = self._ring[self._tensor(runs.slots[which]), self._tensor(positions % self._bursts.window)]
        return torch.where(self._tensor(behind < 0)[:, None], kept, self._model.rows_hidden[now])

    def _keep(self, step: BurstBatch) -> None:
        """Store the hidden states of the last rows of every request for later multi-token steps."""
        batch, window = step.batch, self._bursts.window
        counts = np.minimum(batch.num_scheduled_tokens, window).astype(np.int64)
        which = np.repeat(np.arange(batch.num_reqs), counts)
        behind = np.arange(len(which)) - np.cumsum(counts)[which]  # relative to the end: the last row is -1
        rows = batch.query_start_loc_np[1:][which].astype(np.int64) + behind
        places = (step.num_read[which] + behind) % window
        slots, places, rows = self._tensor(np.stack([batch.idx_mapping_np[which], places, rows]))
        self._ring[slots, places] = self._model.rows_hidden[rows]

    def _read_by_attention(
        self, runs: Runs, starts: np.ndarray, positions: torch.Tensor
    ) -> AbstractContextManager[None]:
        """Return the forward context of the modules' attention layers."""
        lengths = runs.stop.astype(np.int32)
        spans = Spans(self._tensor(runs.slots), self._tensor(starts), self._tensor(lengths), positions)
        self._attention.map(spans)
        metadata = self._attention.metadata(spans, starts, lengths, int(lengths.max()))
        return self._attention.reads(metadata, len(positions))

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return self._said.arrays.tensor(self._said.arrays.upload(values))
