"""Attention backend whose result for a row does not depend on the other rows of the pass.

vLLM's kernel rescales the softmax between tiles of keys. Their size depends on the number of query rows of a request
and on the second-level cache. So a row of a long prompt would have other bits in a chunk, after a hit in the prefix
cache, or after a preemption. Rows that the kernel computes in one pass have the tile of a single row. The backend
therefore divides a request's rows into requests of at most one pass over the same block table.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from vllm import _custom_ops as ops
from vllm.config import VllmConfig, get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
    _get_attn_isa,
)

HEADS_OF_A_PASS = {"vec": 8, "vec16": 16, "amx": 32}  # query heads, by the kernel's name; others: one row a pass
NO_WINDOW = -1
# step and maximum of the head sizes that the kernel may support
HEAD_SIZE_STEP = 16
MAX_HEAD_SIZE = 512


def rows_of_a_pass(kernel: str, num_heads: int, num_kv_heads: int) -> int:
    """Return the largest number of rows of a request that vLLM's kernel computes in one pass."""
    most = HEADS_OF_A_PASS.get(kernel, 1)
    heads_per_key = num_heads // num_kv_heads
    return most if most % heads_per_key else most // heads_per_key  # as in the kernel, which otherwise repeats the keys


def divide_requests(batch: CommonAttentionMetadata, max_rows: int) -> CommonAttentionMetadata:
    """Return the batch with each request divided into requests of at most `max_rows` consecutive rows."""
    if batch.max_query_len <= max_rows:
        return batch
    starts = batch.query_start_loc_cpu.numpy()[: batch.num_reqs + 1]
    counts = -(-np.diff(starts) // max_rows)
    owners = np.repeat(np.arange(batch.num_reqs), counts)
    ordinals = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    ends = np.minimum(starts[owners] + max_rows * (ordinals + 1), starts[owners + 1])
    lengths = batch.seq_lens.numpy()[owners] - (starts[owners + 1] - ends)
    new_starts = torch.from_numpy(np.concatenate([starts[:1], ends]).astype(np.int32))
    return replace(
        batch,
        num_reqs=len(owners),
        query_start_loc=new_starts,
        query_start_loc_cpu=new_starts,
        max_query_len=max_rows,
        seq_lens=torch.from_numpy(lengths.astype(np.int32)),
        block_table_tensor=batch.block_table_tensor[torch.from_numpy(owners)],
    )


def supported_head_sizes(config: VllmConfig) -> list[int]:
    """Return the head sizes that vLLM's kernel supports. With others, it would fail in the first request."""
    return [size for size in range(HEAD_SIZE_STEP, MAX_HEAD_SIZE + 1, HEAD_SIZE_STEP) if _is_supported(size, config)]


def _is_supported(head_size: int, config: VllmConfig) -> bool:
    dtype = config.model_config.dtype
    assert isinstance(dtype, torch.dtype), dtype
    kernel = _get_attn_isa(dtype, config.cache_config.block_size, head_size, config.cache_config.cache_dtype)
    try:
        ops.cpu_attn_get_scheduler_metadata(
            num_reqs=1,
            num_heads=1,
            num_kv_heads=1,
            head_dim=head_size,
            seq_lens=torch.ones(1, dtype=torch.int32),
            dtype=dtype,
            query_start_loc=torch.arange(2, dtype=torch.int32),
            causal=True,
            sliding_window_size=NO_WINDOW,
            isa=kernel,
            enable_kv_split=False,
        )
    except RuntimeError:
        return False
    return True


class InvariantMetadataBuilder(CPUAttentionMetadataBuilder):
    """Builder of the attention metadata of a step, with prompts divided into passes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        layers = get_layers_from_vllm_config(self.vllm_config, Attention, self.layer_names).values()
        has_window = any(getattr(layer.impl, "sliding_window", NO_WINDOW) != NO_WINDOW for layer in layers)
        # With a window, tiles begin at the first key that the first row of a pass sees.
        self.max_rows = 1 if has_window else rows_of_a_pass(self.isa, self.num_heads, self.num_kv_heads)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> CPUAttentionMetadata:
        """Return the metadata (vLLM's hook). Only requests with causal attention take several steps and are divided."""
        batch = common_attn_metadata
        if batch.causal is True and not (self.is_cross_attention or self.is_encoder_only_attention):
            batch = divide_requests(batch, self.max_rows)
        return super().build(common_prefix_len, batch, fast_build)


class InvariantAttentionBackend(CPUAttentionBackend):
    """vLLM's attention backend with `InvariantMetadataBuilder`."""

    @staticmethod
    def get_builder_cls() -> type[InvariantMetadataBuilder]:
        return InvariantMetadataBuilder
