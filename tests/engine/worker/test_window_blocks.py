"""Blocks that a sliding window has freed are not in the runner's block tables, as in the scheduler's."""

import numpy as np
import pytest
import torch

from stretto.engine.environment import prepare_environment

prepare_environment()

from vllm import SamplingParams  # noqa: E402
from vllm.v1.core.kv_cache_manager import KVCacheManager  # noqa: E402
from vllm.v1.kv_cache_interface import (  # noqa: E402
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    SlidingWindowSpec,
)
from vllm.v1.request import Request  # noqa: E402

from stretto.engine.worker.window_blocks import clear_freed_blocks  # noqa: E402

BLOCK, COLUMNS, NUM_SLOTS = 4, 24, 5
SHAPE = {"block_size": BLOCK, "num_kv_heads": 1, "head_size": 8, "dtype": torch.float32}
FULL = KVCacheGroupSpec(["full"], FullAttentionSpec(**SHAPE))


def num_rows(step: int, slot: int) -> int:
    """Return the number of rows that a step computes: parts of a prompt, or one row."""
    return (1, 7, 1)[step % 3] if slot else 1


@pytest.mark.parametrize("window", [1, 6, 8, 9])
def test_cleared_block_tables_equal_those_of_the_scheduler(window: int) -> None:
    """Prompts are computed in parts of several blocks; one request has other blocks than when it began."""
    group = KVCacheGroupSpec(["windowed"], SlidingWindowSpec(**SHAPE, sliding_window=window))
    config = KVCacheConfig(60, [], [group])
    manager = KVCacheManager(config, 200, scheduler_block_size=BLOCK, hash_block_size=BLOCK, enable_caching=False)
    slots, table = torch.tensor([3, 0, 4]), np.zeros((NUM_SLOTS, COLUMNS), np.int32)
    num_blocks, num_computed = [0] * NUM_SLOTS, torch.zeros(NUM_SLOTS, dtype=torch.int32)
    requests = [Request(str(slot), list(range(95)), SamplingParams(max_tokens=9), None) for slot in slots.tolist()]
    num_freed = 0
    for step in range(29):
        for request, slot in zip(requests, slots.tolist(), strict=True):
            allocated = manager.allocate_slots(request, num_rows(step, slot))
            assert allocated is not None
            new = allocated.get_block_ids()[0]
            table[slot, num_blocks[slot] : num_blocks[slot] + len(new)] = new
            num_blocks[slot] += len(new)
        gathered = torch.from_numpy(table)[slots]
        clear_freed_blocks((gathered,), slots, config, num_computed)
        for row, request, slot in zip(gathered.tolist(), requests, slots.tolist(), strict=True):
            [held] = manager.get_block_ids(request.request_id)
            assert row[: num_blocks[slot]] == held, (step, slot)
            num_freed = max(num_freed, held.count(0))
            request.num_computed_tokens += num_rows(step, slot)
            num_computed[slot] = request.num_computed_tokens
    assert num_freed > 15


def test_only_layers_with_a_window_and_rows_of_the_batch_are_cleared() -> None:
    group = KVCacheGroupSpec(["windowed"], SlidingWindowSpec(**SHAPE, sliding_window=6))
    config = KVCacheConfig(60, [], [FULL, group])
    tables = tuple(torch.full((3, COLUMNS), 7, dtype=torch.int32) for _ in range(2))
    clear_freed_blocks(tables, torch.tensor([1, 0]), config, torch.tensor([3, 17], dtype=torch.int32))
    assert (tables[0] == 7).all()
    assert (tables[1] == 0).sum(1).tolist() == [3, 0, 0]
