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

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.forward_context import set_forward_context
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata, build_slot_mappings_by_layer, init_attn_backend
from vllm.v1.worker.gpu.block_table import BlockTables

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
        self._unread = np.zeros(self._num_slots, np.int64)  # the first row of each slot that some module has not read

    def bind(self, kv_cache_config: KVCacheConfig, block_tables: BlockTables) -> None:
        """Read and write the KV cache that has been allocated."""
        device = self._ring.device
        groups, _, _ = init_attn_backend(
            kv_cache_config, self._vllm_config, device, active_layer_names=self._model.module_attention()
        )
        self._attn_groups, self._kv_cache_config, self._block_tables = groups, kv_cache_config, block_tables
        num_groups, num_rows = block_tables.slot_mappings.shape
        num_rows += self._num_slots * self._bursts.window
        self._slot_mappings = block_tables.slot_mappings.new_zeros(num_groups, num_rows)

    def place(self, slot: int, num_read: int) -> None:
        """A request has got `slot`; `num_read` of its rows have been read by others, whose blocks it shares."""
        self._unread[slot] = num_read

    def __call__(self, hidden: torch.Tensor, step: BurstBatch, say: Say) -> None:
        """Say the rows behind the first."""
        runs = self._runs(step)
        if len(runs.index):
            self._run(hidden, step, runs, say)
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
        metadata, mapping = self._attention(runs, starts, position)
        with set_forward_context(metadata, self._vllm_config, num_tokens=len(which), slot_mapping=mapping):
            for k in range(self._bursts.num_modules):
                states = self._model.run_module(k, self._said.embed(slots, at + (k + 1)), states, position)
                if (step.num_extra > k).any():
                    of_batch = hidden.new_zeros(hidden.shape)
                    of_batch[index] = states[last]
                    say(of_batch, k + 1)

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
        rows = self._tensor(batch.query_start_loc_np[1:][which].astype(np.int64) + behind)
        slots, places = batch.idx_mapping_np[which], (step.num_read[which] + behind) % window
        self._ring[self._tensor(slots), self._tensor(places)] = self._model.rows_hidden[rows]

    def _attention(
        self, runs: Runs, starts: np.ndarray, positions: torch.Tensor
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """What the modules' attention layers read: where each request's rows begin, and its blocks."""
        tables, num_rows = self._block_tables, int(starts[-1])
        slots, begin = self._tensor(runs.slots), torch.from_numpy(starts.astype(np.int32))
        begin_there, lengths = self._tensor(starts.astype(np.int32)), torch.from_numpy(runs.stop.astype(np.int32))
        mappings = tables.compute_slot_mappings(slots, begin_there, positions, num_rows, out=self._slot_mappings)
        metadata = build_attn_metadata(
            attn_groups=self._attn_groups,
            num_reqs=len(runs.index),
            num_tokens=num_rows,
            query_start_loc_gpu=begin_there,
            query_start_loc_cpu=begin,
            max_query_len=int(runs.counts.max()),
            seq_lens=self._tensor(runs.stop.astype(np.int32)),
            max_seq_len=int(runs.stop.max()),
            block_tables=tables.gather_block_tables(slots, num_reqs_padded=len(runs.index)),
            slot_mappings=mappings,
            kv_cache_config=self._kv_cache_config,
            seq_lens_cpu_upper_bound=lengths,
            positions=positions,
        )
        return metadata, build_slot_mappings_by_layer(mappings, self._kv_cache_config)

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return self._said.arrays.tensor(self._said.arrays.upload(values))
