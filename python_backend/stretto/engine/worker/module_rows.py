"""Further rows by modules behind the model: VITA-Audio's multiple cross-modal token prediction (arXiv 2505.03739).

A module is a decoder layer with keys and values of its own. Of row j it reads what the module before it made of row j
(the first: the model's last hidden state) and the embedded row j + k + 1; so module k says row j + k + 2:

    row        j         j + 1     j + 2     j + 3          j: the last row that the model has read in this step
    model      h ─say──► row 0
    module 0   h + row 0 ────────► row 1
    module 1        h' + row 1 ────────────► row 2          ──say──►: drawn, written down, and read by the next module
    module 2               h" + row 2 ────────────► …

No row beyond j is touched, so modules need no KV blocks that the scheduler has not given. What a module could not read
yet, for want of the ids behind it or because steps had no burst, it reads with the next burst: the hidden states of the
last `window` rows are kept for every slot, and a burst takes all modules over those of them that some module lacks.
Where a schedule has no burst for longer than that, they are read before they are forgotten. Prompts pass through all
modules as they come, chunk by chunk.
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
    """The requests whose rows modules read in a step, and which rows: of the request `index[i]` of the batch those from
    `first[i]` to before `stop[i]`. All [n] int64 on the host."""

    index: np.ndarray
    slots: np.ndarray
    first: np.ndarray
    stop: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        return self.stop - self.first


class ModuleRows:
    """The modules of `model`, over what stands in the slots. Everything about rows is known on the host."""

    def __init__(self, model: Any, said: SaidRows, bursts: Bursts, vllm_config: VllmConfig):
        self._model, self._said, self._bursts, self._vllm_config = model, said, bursts, vllm_config
        self._num_slots = vllm_config.scheduler_config.max_num_seqs
        hidden = model.rows_hidden
        self._ring = hidden.new_zeros(self._num_slots, bursts.window, hidden.shape[1])
        self._program: ModuleProgram | None = None
        self._unread = np.zeros(self._num_slots, np.int64)  # the first row of each slot that some module has not read

    def bind(self, kv_cache_config: KVCacheConfig, block_tables: BlockTables) -> None:
        """Read and write the KV cache that has been allocated."""
        config, layers = self._vllm_config, self._model.module_attention()
        num_rows = block_tables.slot_mappings.shape[1] + self._num_slots * self._bursts.window
        self._attention = ModuleAttention(config, kv_cache_config, block_tables, layers, num_rows)
        if self._said.arrays.xp is np:
            return
        # Ranks add up what each makes of its heads in every layer: what does that is launched as it is.
        is_alone = config.parallel_config.tensor_parallel_size == 1
        recorder = recorder_of(self._ring.device, config) if is_alone else None
        self._program = ModuleProgram(self._model, self._said, self._ring, self._attention, recorder)

    def capture(self) -> None:
        """Capture what graphs there are before the first request."""
        if self._program is not None:
            self._program.capture()

    def place(self, slot: int, num_read: int) -> None:
        """A request has got `slot`; `num_read` of its rows have been read by others, whose blocks it shares."""
        self._unread[slot] = num_read

    def __call__(self, hidden: torch.Tensor, step: BurstBatch, say: Say) -> None:
        """Say the rows behind the first."""
        runs = self._runs(step)
        if len(runs.index):
            if self._program is None or step.batch.is_prefilling_np[runs.index].any():
                self._run(hidden, step, runs, say)
            else:
                self._run_uniform(self._program, step, runs, say)
        self._keep(step)

    def _runs(self, step: BurstBatch) -> Runs:
        """Chunks of prompts, requests that say more, and those of which a row would be forgotten unread."""
        batch, stop = step.batch, step.num_read
        unread = self._unread[batch.idx_mapping_np]
        is_late = stop - unread >= self._bursts.window
        index = np.flatnonzero(step.is_read & (batch.is_prefilling_np | (step.num_extra > 0) | is_late))
        slots, stop = batch.idx_mapping_np[index], stop[index]
        prefill_len = batch.prefill_len_np[index].astype(np.int64)
        # The last module reads a row once the num_modules ids behind it are known.
        num_known = np.where(stop < prefill_len, prefill_len, stop + 1 + step.num_extra[index])
        self._unread[slots] = np.clip(num_known - self._bursts.num_modules, unread[index], stop)
        return Runs(index, slots, unread[index], stop)

    def _run(self, hidden: torch.Tensor, step: BurstBatch, runs: Runs, say: Say) -> None:
        """All modules over the rows of `runs`, each saying a row of every request that has one more to say."""
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
        """The same by launches that do not depend on whose rows are read."""
        first = step.num_read.copy()
        first[runs.index] = runs.first
        program.prepare(step, first)
        for k in range(self._bursts.num_modules):
            states = program.run(k, step.batch.num_reqs)
            if (step.num_extra > k).any():
                say(states, k + 1)

    def _hidden(self, step: BurstBatch, runs: Runs, which: np.ndarray, positions: np.ndarray) -> torch.Tensor:
        """The model's hidden states of rows: of this step, or kept from those before it; [N, H]."""
        batch, of_run = step.batch, runs.index[which]
        behind = positions - batch.num_computed_tokens_np[of_run]
        now = self._tensor(np.maximum(batch.query_start_loc_np[of_run] + behind, 0))
        kept = self._ring[self._tensor(runs.slots[which]), self._tensor(positions % self._bursts.window)]
        return torch.where(self._tensor(behind < 0)[:, None], kept, self._model.rows_hidden[now])

    def _keep(self, step: BurstBatch) -> None:
        """Keep the hidden states of the last rows of every request, for bursts to come."""
        batch, window = step.batch, self._bursts.window
        counts = np.minimum(batch.num_scheduled_tokens, window).astype(np.int64)
        which = np.repeat(np.arange(batch.num_reqs), counts)
        behind = np.arange(len(which)) - np.cumsum(counts)[which]  # the last row of each stands at -1
        rows = batch.query_start_loc_np[1:][which].astype(np.int64) + behind
        places = (step.num_read[which] + behind) % window
        slots, places, rows = self._tensor(np.stack([batch.idx_mapping_np[which], places, rows]))
        self._ring[slots, places] = self._model.rows_hidden[rows]

    def _read_by_attention(
        self, runs: Runs, starts: np.ndarray, positions: torch.Tensor
    ) -> AbstractContextManager[None]:
        """What the modules' attention layers read: where each request's rows begin, and its blocks."""
        lengths = runs.stop.astype(np.int32)
        spans = Spans(self._tensor(runs.slots), self._tensor(starts), self._tensor(lengths), positions)
        self._attention.map(spans)
        metadata = self._attention.metadata(spans, starts, lengths, int(lengths.max()))
        return self._attention.reads(metadata, len(positions))

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return self._said.arrays.tensor(self._said.arrays.upload(values))
