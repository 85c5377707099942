"""What the attention layers of modules read beside rows: where each request's rows begin, its blocks and its length."""

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
    """Rows of requests, one request's behind another's.

    slots [n] int64 and begin [n + 1] int32: whose they are, and where those of each begin. lengths [n] int32: up to
    which row each attends. positions [N] int64. All on the device.
    """

    slots: torch.Tensor
    begin: torch.Tensor
    lengths: torch.Tensor
    positions: torch.Tensor


class ModuleAttention:
    """Builders of the modules' own, which share no buffer with those that a captured graph of the model reads."""

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
        # The most rows that a graph may hold: what a builder leaves for one lies in buffers of that size.
        compilation = vllm_config.compilation_config
        is_uniform = support.min_cg_support.value >= AttentionCGSupport.UNIFORM_BATCH.value
        has_graphs = is_uniform and compilation.cudagraph_mode.has_full_cudagraphs()
        self.max_captured_rows = (compilation.max_cudagraph_capture_size or 0) if has_graphs else 0

    def map(self, spans: Spans) -> torch.Tensor:
        """Where the keys and values of each row go, [G, N], and find the blocks of each request."""
        num_rows = len(spans.positions)
        slots, begin = spans.slots, spans.begin
        self._tables.gather_block_tables(slots, num_reqs_padded=len(slots))
        return self._tables.compute_slot_mappings(slots, begin, spans.positions, num_rows, out=self._slot_mappings)

    def metadata(self, spans: Spans, begin: np.ndarray, lengths: np.ndarray, max_length: int) -> dict[str, Any]:
        """What attention layers read, by name; `begin` and `lengths`, int32, are on the host what `spans` has."""
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
        """Layers run in it read `metadata`, and what `map` has left for so many rows."""
        mapping = build_slot_mappings_by_layer(self._slot_mappings[:, :num_rows], self._kv_cache_config)
        return set_forward_context(metadata, self._vllm_config, num_tokens=num_rows, slot_mapping=mapping)
