"""Attention metadata of MCTP modules: row ranges, blocks and lengths of each request."""

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata, build_slot_mappings_by_layer, init_attn_backend
from vllm.v1.worker.gpu.block_table import BlockTables


class Spans(NamedTuple):
    """Rows of several requests, concatenated. All tensors are on the device.

    Attributes:
        slots: Run slots, int64 [n].
        begin: First row of each request, int32 [n + 1].
        lengths: Number of rows that each request attends to, int32 [n].
        positions: Position of each row, int64 [N].
    """

    slots: torch.Tensor
    begin: torch.Tensor
    lengths: torch.Tensor
    positions: torch.Tensor


class ModuleAttention:
    """Metadata builders of the modules, separate from those of the model's captured graphs."""

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
        self._groups, self._kv_cache_config, self._tables = groups, kv_cache_config, block_tables
        self._vllm_config, self.max_length = vllm_config, vllm_config.model_config.max_model_len
        self._slot_mappings = block_tables.slot_mappings.new_zeros(len(block_tables.slot_mappings), max_rows)
        # Largest number of rows in a graph, given by the size of the builders' buffers.
        compilation = vllm_config.compilation_config
        is_uniform = support.min_cg_support.value >= AttentionCGSupport.UNIFORM_BATCH.value
        has_graphs = is_uniform and compilation.cudagraph_mode.has_full_cudagraphs()
        self.max_captured_rows = (compilation.max_cudagraph_capture_size or 0) if has_graphs else 0

    def map(self, spans: Spans) -> torch.Tensor:
        """Gather the blocks of each request and return the KV slot of each row, [G, N]."""
        num_rows = len(spans.positions)
        slots, begin = spans.slots, spans.begin
        self._tables.gather_block_tables(slots, num_reqs_padded=len(slots))
        return self._tables.compute_slot_mappings(slots, begin, spans.positions, num_rows, out=self._slot_mappings)

    def metadata(self, spans: Spans, begin: np.ndarray, lengths: np.ndarray, max_length: int) -> dict[str, Any]:
        """Return attention metadata by layer; `begin` and `lengths` (int32) are host copies of those in `spans`."""
        num_rows, num_reqs = len(spans.positions), len(spans.slots)
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
        """Return a forward context in which layers use `metadata` and the KV slots from `map` for `num_rows` rows."""
        mapping = build_slot_mappings_by_layer(self._slot_mappings[:, :num_rows], self._kv_cache_config)
        return set_forward_context(metadata, self._vllm_config, num_tokens=num_rows, slot_mapping=mapping)
