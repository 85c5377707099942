"""Multi-token prediction with MCTP modules (arXiv 2505.03739): attention metadata, launches and rows to process."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata, build_slot_mappings_by_layer, init_attn_backend
from vllm.v1.worker.gpu.block_table import BlockTables

from stretto.engine.worker.predictors import BurstBatch, GeneratedRows, SampleRow
from stretto.engine.worker.step_graphs import Recorder, StepGraphs, recorder_of
from stretto.families.vita_audio.bursts import ModuleSchedules


class RowSpans(NamedTuple):
    """Consecutive rows of n requests, concatenated to N rows, as tensors on the device.

    Attributes:
        slots: Run slots, int64 [n].
        begin: Index of each request's first row, followed by N, int32 [n + 1].
        lengths: Number of positions that each request attends to, int32 [n].
        positions: Position of each row, int64 [N].
    """

    slots: torch.Tensor
    begin: torch.Tensor
    lengths: torch.Tensor
    positions: torch.Tensor


class ModuleAttention:
    """Attention metadata for the modules, in other buffers than those that the model's captured graphs read.

    Args:
        layers: vLLM's names of the modules' attention layers.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        kv_cache_config: KVCacheConfig,
        block_tables: BlockTables,
        layers: set[str],
        max_rows: int,
    ):
        device = block_tables.slot_mappings.device
        groups, support, _ = init_attn_backend(kv_cache_config, vllm_config, device, active_layer_names=layers)
        self._groups = groups
        self._kv_cache_config = kv_cache_config
        self._tables = block_tables
        self._vllm_config = vllm_config
        self.max_length = vllm_config.model_config.max_model_len
        self._slot_mappings = block_tables.slot_mappings.new_zeros(len(block_tables.slot_mappings), max_rows)
        # Largest number of rows in a graph, given by the size of the builders' buffers.
        compilation = vllm_config.compilation_config
        is_uniform = support.min_cg_support.value >= AttentionCGSupport.UNIFORM_BATCH.value
        has_graphs = is_uniform and compilation.cudagraph_mode.has_full_cudagraphs()
        self.max_captured_rows = (compilation.max_cudagraph_capture_size or 0) if has_graphs else 0

    def gather(self, slots: torch.Tensor) -> None:
        """Copy the block-table rows of the requests in `slots` [B] to the buffer that the attention reads.

        The copy must not be captured, because vLLM's kernel reads block counts from two host buffers in turn.
        """
        self._tables.gather_block_tables(slots, num_reqs_padded=len(slots))

    def map(self, spans: RowSpans) -> torch.Tensor:
        """Compute and return the KV-cache slot of each row, [KV-cache groups, N]."""
        slots = spans.slots
        begin = spans.begin
        num_rows = len(spans.positions)
        return self._tables.compute_slot_mappings(slots, begin, spans.positions, num_rows, out=self._slot_mappings)

    def metadata(self, spans: RowSpans, begin: np.ndarray, lengths: np.ndarray, max_length: int) -> dict[str, Any]:
        """Return the attention metadata, keyed by layer name.

        Args:
            begin: Host copy of `spans.begin`, int32.
            lengths: Host copy of `spans.lengths`, int32.
            max_length: Largest value in `lengths` that the launches must support.
        """
        num_rows = len(spans.positions)
        num_reqs = len(spans.slots)
        return build_attn_metadata(
            attn_groups=self._groups,
            num_reqs=num_reqs,
            num_tokens=num_rows,
            query_start_loc_gpu=spans.begin,
            query_start_loc_cpu=torch.from_numpy(begin),
            max_query_len=int(np.diff(begin).max()),
            seq_lens=spans.lengths,
            max_seq_len=max_length,
            block_tables=tuple(table[:num_reqs] for table in self._tables.input_block_tables),
            slot_mappings=self._slot_mappings[:, :num_rows],
            kv_cache_config=self._kv_cache_config,
            seq_lens_cpu_upper_bound=torch.from_numpy(lengths),
            positions=spans.positions,
        )

    def reads(self, metadata: dict[str, Any], num_rows: int) -> AbstractContextManager[None]:
        """Return a forward context in which attention uses `metadata` and the KV-cache slots from `map`."""
        mapping = build_slot_mappings_by_layer(self._slot_mappings[:, :num_rows], self._kv_cache_config)
        return set_forward_context(metadata, self._vllm_config, num_tokens=num_rows, slot_mapping=mapping)


# Per row: slot, position, index of its hidden state in this step, True if the hidden state is in the ring instead, and
# True if modules process the row now. Per request: slot, and index of its last row.
SLOT, POSITION, NOW, IS_KEPT, IS_READ = range(5)
NOWHERE = -1  # vLLM's PAD_SLOT_ID: keys and values are not stored


class ModuleProgram:
    """Kernel launches of the modules that depend only on the batch size, so that they can be captured.

    With a recorder, there is one graph per module and padded number of requests. The modules run over a window of rows
    per request. Rows that need no processing are also computed, but their keys and values are not stored.

    Args:
        model: Model with `run_module` and `rows_hidden`.
        ring: Hidden states of the backbone for the last rows of each slot, [R, window, H].

    Attributes:
        hidden: Output of the most recently run module for each request's last row, [R, H].
    """

    def __init__(
        self,
        model: Any,
        generated: GeneratedRows,
        ring: torch.Tensor,
        attention: ModuleAttention,
        recorder: Recorder | None,
    ):
        self._model = model
        self._generated = generated
        self._ring = ring
        self._attention = attention
        self._num_modules = model.num_modules
        num_reqs, self._window, width = ring.shape
        num_rows = num_reqs * self._window
        device = ring.device
        self._rows = torch.zeros(5, num_rows, dtype=torch.int64, device=device)
        self._requests = torch.zeros(2, num_reqs, dtype=torch.int64, device=device)
        self._lengths = torch.zeros(num_reqs, dtype=torch.int32, device=device)
        self._begin = np.arange(num_reqs + 1, dtype=np.int32) * self._window
        self._begin_there = torch.from_numpy(self._begin).to(device)
        self._states = ring.new_zeros(num_rows, width)
        self.hidden = ring.new_zeros(num_reqs, width)
        self._size = 0
        self._metadata = dict[str, Any]()
        max_captured = min(num_reqs, attention.max_captured_rows // self._window)
        self._graphs = StepGraphs(self._launch, num_reqs, recorder, lambda module, num_reqs: num_reqs <= max_captured)

    def capture(self) -> None:
        """Capture all modules at all sizes, before the first request, while all rows are inactive."""
        self._rows.zero_()
        for size in self._graphs.sizes:
            self._build(size, np.full(size, self._window, np.int32))
            self._graphs.capture(range(self._num_modules), [size])

    def prepare(self, step: BurstBatch, first: np.ndarray) -> None:
        """Write the modules' inputs for the next step; `first` is each request's first row to process, int [B]."""
        batch = step.batch
        window = self._window
        num_reqs = step.batch.num_reqs
        size = self._graphs.padded(num_reqs)
        begin = np.maximum(step.num_read - window, 0)
        positions = begin[:, None] + np.arange(window)
        offsets = positions - batch.num_computed_tokens_np[:, None]
        now = batch.query_start_loc_np[:num_reqs, None] + offsets
        rows = np.zeros((len(self._rows), size, window), np.int64)
        mine = rows[:, :num_reqs]
        mine[SLOT] = batch.idx_mapping_np[:, None]
        mine[POSITION] = positions
        mine[NOW] = np.clip(now, 0, batch.num_tokens - 1)
        mine[IS_KEPT] = offsets < 0
        mine[IS_READ] = (positions >= first[:, None]) & (positions < step.num_read[:, None])
        requests = np.zeros((2, size), np.int64)
        requests[0, :num_reqs] = batch.idx_mapping_np
        requests[1] = np.arange(size) * window
        requests[1, :num_reqs] += step.num_read - 1 - begin
        lengths = np.full(size, window, np.int32)
        lengths[:num_reqs] += begin.astype(np.int32)
        upload = self._generated.arrays.upload
        tensor = self._generated.arrays.tensor
        self._rows[:, : size * window] = tensor(upload(rows.reshape(len(rows), -1)))
        self._requests[:, :size] = tensor(upload(requests))
        self._attention.gather(self._requests[0, :size])
        self._build(size, lengths)

    def run(self, module: int, num_reqs: int) -> torch.Tensor:
        """Run module `module` over the prepared rows; return its output for each request's last row, [B, H]."""
        self._graphs.run(module, num_reqs)
        return self.hidden[:num_reqs]

    def _build(self, size: int, lengths: np.ndarray) -> None:
        """Update the attention metadata for requests of these lengths, in the buffers that captured graphs read."""
        arrays = self._generated.arrays
        self._lengths[:size] = arrays.tensor(arrays.upload(lengths))
        begin = self._begin[: size + 1]
        self._metadata = self._attention.metadata(self._spans(size), begin, lengths, self._attention.max_length)
        self._size = size

    def _spans(self, size: int) -> RowSpans:
        positions = self._rows[POSITION, : size * self._window]
        return RowSpans(self._requests[0, :size], self._begin_there[: size + 1], self._lengths[:size], positions)

    def _launch(self, module: int, size: int) -> None:
        assert size == self._size, f"{self._size} requests were prepared, not {size}"
        num_rows = size * self._window
        rows = self._rows[:, :num_rows]
        states = self._states[:num_rows]
        if module == 0:
            mapping = self._attention.map(self._spans(size))
            mapping.masked_fill_(rows[IS_READ] == 0, NOWHERE)
            kept = self._ring[rows[SLOT], rows[POSITION] % self._window]
            is_kept = rows[IS_KEPT].bool()[:, None]
            torch.where(is_kept, kept, self._model.rows_hidden[rows[NOW]], out=states)
        with self._attention.reads(self._metadata, num_rows):
            embeds = self._generated.embed(rows[SLOT], rows[POSITION] + (module + 1))
            states.copy_(self._model.run_module(module, embeds, states, rows[POSITION]))
        torch.index_select(states, 0, self._requests[1, :size], out=self.hidden[:size])


@dataclass(frozen=True)
class Runs:
    """Consecutive rows of n requests that the modules process in a step; arrays are int64 [n] on the host.

    Attributes:
        index: Index of each request in the batch.
        stop: Row after the last row of each run.
    """

    index: np.ndarray
    slots: np.ndarray
    first: np.ndarray
    stop: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        return self.stop - self.first


class ModuleRows:
    """Predictor that generates a step's additional rows with MCTP modules; see `RowPredictor`.

    A module can process a row only when the ids that follow the row are known. The hidden states of the last rows of
    each slot are therefore kept, and the host tracks which rows still have to be processed.
    """

    def __init__(self, model: Any, generated: GeneratedRows, bursts: ModuleSchedules, vllm_config: VllmConfig):
        self._model = model
        self._generated = generated
        self._bursts = bursts
        self._vllm_config = vllm_config
        self._num_slots = vllm_config.scheduler_config.max_num_seqs
        hidden = model.rows_hidden
        self._ring = hidden.new_zeros(self._num_slots, bursts.window, hidden.shape[1])
        self._program: ModuleProgram | None = None
        self._unread = np.zeros(self._num_slots, np.int64)  # first row of each slot not yet processed by all modules

    def bind(self, kv_cache_config: KVCacheConfig, block_tables: BlockTables) -> None:
        """Use the allocated KV cache; on a GPU, also set up kernel launches that CUDA graphs can capture."""
        config = self._vllm_config
        layers = self._model.attention_layers()
        num_rows = block_tables.slot_mappings.shape[1] + self._num_slots * self._bursts.window
        self._attention = ModuleAttention(config, kv_cache_config, block_tables, layers, num_rows)
        if self._generated.arrays.xp is np:
            return
        # Tensor-parallel ranks exchange partial sums in every layer, which cannot be captured.
        is_alone = config.parallel_config.tensor_parallel_size == 1
        recorder = recorder_of(self._ring.device, config) if is_alone else None
        self._program = ModuleProgram(self._model, self._generated, self._ring, self._attention, recorder)

    def capture(self) -> None:
        """Capture graphs before the first request."""
        if self._program is not None:
            self._program.capture()

    def fill_slot(self, slot: int, num_read: int) -> None:
        """Record that `slot` has received a request whose first `num_read` rows are in the prefix cache."""
        self._unread[slot] = num_read

    def __call__(self, hidden: torch.Tensor, step: BurstBatch, sample_row: SampleRow) -> None:
        """Generate the rows of a step after the first one; see `RowPredictor`."""
        runs = self._runs(step)
        if len(runs.index):
            if self._program is None or step.batch.is_prefilling_np[runs.index].any():
                self._run(hidden, step, runs, sample_row)
            else:
                self._run_uniform(self._program, step, runs, sample_row)
        self._keep(step)

    def _runs(self, step: BurstBatch) -> Runs:
        """Return the rows to process in a step.

        These are the rows of prompt chunks, of requests that generate additional rows, and of requests whose
        unprocessed rows would otherwise fall out of the window of kept hidden states.
        """
        batch = step.batch
        stop = step.num_read
        unread = self._unread[batch.idx_mapping_np]
        is_late = stop - unread >= self._bursts.window
        index = np.flatnonzero(step.is_read & (batch.is_prefilling_np | (step.num_extra > 0) | is_late))
        slots = batch.idx_mapping_np[index]
        stop = stop[index]
        prefill_len = batch.prefill_len_np[index].astype(np.int64)
        # The last module processes a row once the num_modules ids after it are known.
        num_known = np.where(stop < prefill_len, prefill_len, stop + 1 + step.num_extra[index])
        self._unread[slots] = np.clip(num_known - self._bursts.num_modules, unread[index], stop)
        return Runs(index, slots, unread[index], stop)

    def _run(self, hidden: torch.Tensor, step: BurstBatch, runs: Runs, sample_row: SampleRow) -> None:
        """Run all modules over exactly the rows in `runs`, and sample a row after each module that a schedule uses."""
        upload = self._generated.arrays.upload
        which = np.repeat(np.arange(len(runs.index)), runs.counts)
        starts = np.concatenate([[0], np.cumsum(runs.counts)])
        positions = runs.first[which] + np.arange(starts[-1]) - starts[which]
        slots = upload(runs.slots[which])
        at = upload(positions)
        states = self._hidden(step, runs, which, positions)
        position = self._tensor(positions)
        last = self._tensor(starts[1:] - 1)
        index = self._tensor(runs.index)
        with self._read_by_attention(runs, starts.astype(np.int32), position):
            for k in range(self._bursts.num_modules):
                states = self._model.run_module(k, self._generated.embed(slots, at + (k + 1)), states, position)
                if (step.num_extra > k).any():
                    of_batch = hidden.new_zeros(hidden.shape)
                    of_batch[index] = states[last]
                    sample_row(of_batch, k + 1)

    def _run_uniform(self, program: ModuleProgram, step: BurstBatch, runs: Runs, sample_row: SampleRow) -> None:
        """Do the same as `_run` for a batch without prompts, with the launches of `program`."""
        first = step.num_read.copy()
        first[runs.index] = runs.first
        program.prepare(step, first)
        for k in range(self._bursts.num_modules):
            states = program.run(k, step.batch.num_reqs)
            if (step.num_extra > k).any():
                sample_row(states, k + 1)

    def _hidden(self, step: BurstBatch, runs: Runs, which: np.ndarray, positions: np.ndarray) -> torch.Tensor:
        """Return the backbone's hidden states [N, H] for the rows to process, from this step or from the ring.

        Args:
            which: Index into `runs` for each row, [N].
            positions: Position of each row, [N].
        """
        batch = step.batch
        of_run = runs.index[which]
        offsets = positions - batch.num_computed_tokens_np[of_run]
        now = self._tensor(np.maximum(batch.query_start_loc_np[of_run] + offsets, 0))
        kept = self._ring[self._tensor(runs.slots[which]), self._tensor(positions % self._bursts.window)]
        return torch.where(self._tensor(offsets < 0)[:, None], kept, self._model.rows_hidden[now])

    def _keep(self, step: BurstBatch) -> None:
        """Store the backbone's hidden states of each request's last rows for later steps."""
        batch = step.batch
        window = self._bursts.window
        counts = np.minimum(batch.num_scheduled_tokens, window).astype(np.int64)
        which = np.repeat(np.arange(batch.num_reqs), counts)
        offsets = np.arange(len(which)) - np.cumsum(counts)[which]  # relative to the end: the last row is -1
        rows = batch.query_start_loc_np[1:][which].astype(np.int64) + offsets
        places = (step.num_read[which] + offsets) % window
        slots, places, rows = self._tensor(np.stack([batch.idx_mapping_np[which], places, rows]))
        self._ring[slots, places] = self._model.rows_hidden[rows]

    def _read_by_attention(
        self, runs: Runs, starts: np.ndarray, positions: torch.Tensor
    ) -> AbstractContextManager[None]:
        """Return the forward context in which the modules' attention layers process the rows in `runs`."""
        lengths = runs.stop.astype(np.int32)
        spans = RowSpans(self._tensor(runs.slots), self._tensor(starts), self._tensor(lengths), positions)
        self._attention.gather(spans.slots)
        self._attention.map(spans)
        metadata = self._attention.metadata(spans, starts, lengths, int(lengths.max()))
        return self._attention.reads(metadata, len(positions))

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return self._generated.arrays.tensor(self._generated.arrays.upload(values))
