"""Block tables of layers with a sliding window."""

import torch
from vllm.v1.kv_cache_interface import KVCacheConfig, SlidingWindowSpec

NULL_BLOCK = 0


def clear_freed_blocks(
    tables: tuple[torch.Tensor, ...], slots: torch.Tensor, config: KVCacheConfig, num_computed: torch.Tensor
) -> None:
    """Replace the blocks that a sliding window has freed by the null block, as the scheduler does in its own tables.

    The runner's tables keep the numbers of freed blocks, which another request may have been given. Attention masks
    their rows, but a masked NaN is still NaN (0 · NaN). The null block is zero.

    Args:
        tables: Block tables of the batch, int32 [B or more, columns] for each group of layers; changed in place.
        num_computed: Number of computed rows of each slot, int32 [slots].
    """
    # WORKAROUND(vllm, fixed in 0.33): its tables keep freed blocks; we remove them
    for table, group in zip(tables, config.kv_cache_groups, strict=True):
        spec = getattr(group.kv_cache_spec, "first_spec", group.kv_cache_spec)
        if isinstance(spec, SlidingWindowSpec):
            skipped = num_computed[slots] - (spec.sliding_window - 1 + spec.extra_retained_tokens)
            first = skipped // spec.block_size
            columns = torch.arange(table.shape[1], dtype=torch.int32, device=table.device)
            table[: len(slots)].masked_fill_(columns < first[:, None], NULL_BLOCK)
