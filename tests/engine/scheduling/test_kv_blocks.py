"""The shortened allocation of KV blocks gives vLLM's results."""

import random

import numpy as np
import pytest
import torch

from stretto.engine.environment import prepare_environment
from stretto.engine.scheduling.block_hashes import row_block_hasher
from stretto.engine.scheduling.planner import KvBlocks
from stretto.engine.scheduling.row_history import RowHistory

prepare_environment()

from vllm import SamplingParams  # noqa: E402
from vllm.v1.core.kv_cache_manager import KVCacheManager  # noqa: E402
from vllm.v1.kv_cache_interface import (  # noqa: E402
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    SlidingWindowSpec,
)
from vllm.v1.request import Request, RequestStatus  # noqa: E402

BLOCK, NUM_BLOCKS = 4, 40
FULL = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32)
WINDOW = SlidingWindowSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32, sliding_window=6)


class Arm:
    """A cache manager, the requests that use it, and the number of calls of vLLM's own `allocate_slots`."""

    def __init__(self, spec: FullAttentionSpec | SlidingWindowSpec, is_short: bool, num_open: int = 0) -> None:
        config = KVCacheConfig(NUM_BLOCKS, [], [KVCacheGroupSpec(["layer"], spec)])
        self.manager = KVCacheManager(config, 200, scheduler_block_size=BLOCK, hash_block_size=BLOCK)
        self.num_calls, allocate = 0, self.manager.allocate_slots

        def count(*args: object, **more: object) -> object:
            self.num_calls += 1
            return allocate(*args, **more)

        self.manager.allocate_slots = count
        blocks = KvBlocks(self.manager, BLOCK, num_open)
        if is_short:
            blocks.shorten_allocation()
        self.requests: dict[str, Request] = {}
        self.histories: dict[str, RowHistory] = {}

    def admit(self, name: str, rows: np.ndarray) -> list[list[int]] | None:
        """Add a request whose prompt is `rows` [P, 2] and compute its prompt; return its new blocks."""
        history = self.histories[name] = RowHistory(rows[:, 1:].astype(np.int32))
        request = self.requests[name] = Request(name, rows[:, 0].tolist(), SamplingParams(max_tokens=99), None)
        request._block_hasher = row_block_hasher(BLOCK, history.rows, (), False)
        request.update_block_hashes()
        found, num_found, *_ = self.manager.get_computed_blocks(request)
        new = self.manager.allocate_slots(request, len(rows) - num_found, num_found, found)
        if new is None:
            del self.requests[name]
            return None
        request.status, request.num_computed_tokens = RequestStatus.RUNNING, len(rows)
        return [list(group) for group in new.get_block_ids()]

    def decode(self, name: str, row: np.ndarray) -> list[list[int]] | None:
        """Append a generated row [2] to a request and compute it; return its new blocks, or None if none is free."""
        request = self.requests[name]
        self.histories[name].put(request.num_tokens, [row[1:].tolist()])
        request.append_output_token_ids(int(row[0]))
        new = self.manager.allocate_slots(request, 1, num_lookahead_tokens=0)
        if new is None:
            self.free(name)
            return None
        request.num_computed_tokens += 1
        return [list(group) for group in new.get_block_ids()]

    def free(self, name: str) -> None:
        self.manager.free(self.requests.pop(name))

    def state(self) -> tuple[object, ...]:
        pool = self.manager.block_pool
        held = {name: self.manager.get_block_ids(name) for name in self.requests}
        hashes = [(block.block_id, block.block_hash, block.ref_cnt) for block in pool.blocks]
        return (
            held,
            hashes,
            pool.get_num_free_blocks(),
            dict(self.manager.coordinator.single_type_managers[0].num_cached_block),
        )


@pytest.mark.parametrize("num_open", [0, 3])
@pytest.mark.parametrize("seed", range(6))
def test_shortened_allocation_matches_vllm_blocks_and_hashes(seed: int, num_open: int) -> None:
    draw, arms = random.Random(seed), [Arm(FULL, is_short, num_open) for is_short in (False, True)]
    prefix, names = np.random.default_rng(9).integers(0, 50, (9, 2)), iter(range(1000))
    for _ in range(300):
        rows = np.random.default_rng(draw.randrange(1 << 30)).integers(0, 50, (draw.randrange(1, 12), 2))
        running, chance = list(arms[0].requests), draw.random()
        if chance < 0.15 or not running:
            name, prompt = str(next(names)), np.concatenate([prefix[: draw.randrange(10)], rows])
            results = [arm.admit(name, prompt) for arm in arms]
        elif chance < 0.2:
            name = draw.choice(running)
            results = [arm.free(name) for arm in arms]
        else:
            results = [[arm.decode(name, rows[0]) for name in running] for arm in arms]
        assert results[0] == results[1]
        assert arms[0].state() == arms[1].state()
    assert arms[1].num_calls < 0.7 * arms[0].num_calls


def test_windows_and_lookahead_fall_back_to_vllm_allocation() -> None:
    windowed = Arm(WINDOW, is_short=True)
    plain = Arm(FULL, is_short=True)
    for arm in (windowed, plain):
        arm.admit("r", np.arange(10).reshape(5, 2))
    before = plain.num_calls
    plain.decode("r", np.array([1, 2]))
    assert plain.num_calls == before
    plain.manager.allocate_slots(plain.requests["r"], 1, num_lookahead_tokens=3)
    assert plain.num_calls == before + 1
    before = windowed.num_calls
    windowed.decode("r", np.array([1, 2]))
    assert windowed.num_calls == before + 1
