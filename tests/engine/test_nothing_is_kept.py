"""Ended requests leave no references and few cached products in the engine's process."""

import gc
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stretto.cpu_backend import products
from stretto.cpu_backend.products import padded_size
from stretto.families.tiny.family import TINY
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompt
from tests import heap
from tests.engine.harness import Engine
from tests.random_checkpoints import write_checkpoint
from tests.tiers import ASYNC_BY_DAY

pytestmark = pytest.mark.engine

MANY = 24
POLICIES = ("always", "adaptive", "until_s")
SEQUENCES = (list, set, frozenset, tuple, deque)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), TINY, "tiny", hidden=64, layers=1)


@pytest.fixture(scope="module")
def multiplied() -> Iterator[set[int]]:
    """Return the row counts that oneDNN has computed."""
    met, multiply = set[int](), products.onednn_mm
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "onednn_mm", lambda out, x, *more: met.add(len(x)) or multiply(out, x, *more))
        yield met


@pytest.fixture(scope="module", params=ASYNC_BY_DAY)
def engine(request: pytest.FixtureRequest, folder: Path, multiplied: set[int]) -> Iterator[Engine]:
    few_blocks = {"max_model_len": 160, "num_gpu_blocks_override": 24, "max_num_seqs": 8}
    with Engine(folder, async_scheduling=request.param, **few_blocks) as running:
        yield running


def mixed_prompt(index: int) -> Prompt:
    """Return a prompt of any task, guidance policy and length; every fifth prompt has a common prefix."""
    policy = POLICIES[index % 3]
    limit = {"guided_until_s": 0.3} if policy == "until_s" else {}
    prompt = make_prompt(TINY, index, policy=policy, **limit)
    longer = np.repeat(prompt.rows[:1], index % 29, 0)
    return replace(prompt, rows=np.concatenate([longer, prompt.rows]) if index % 5 else prompt.rows)


def run(engine: Engine, first: int, count: int) -> None:
    """Run `count` requests that arrive one step apart; some are aborted in the queue or later."""
    prompts = {f"request-{index}": mixed_prompt(index) for index in range(first, first + count)}
    arrivals = {name: step for step, name in enumerate(prompts)}
    aborts = {name: step + 3 * step % 40 for name, step in arrivals.items() if step % 6 == 0}
    engine.run(prompts, arrivals, aborts)
    assert engine.is_clean()


def kept_ids() -> list[str]:
    """Return all containers in this process, of any GC generation, that contain a request id."""
    heap.take_back()
    found = []
    for container in gc.get_objects():
        kind = type(container)  # asking the object itself could wake a lazy module
        if issubclass(kind, dict):
            parts = [part for item in dict.items(container) for part in item]
        elif issubclass(kind, SEQUENCES):
            parts = list(kind.__iter__(container))
        else:
            continue
        ids = [part for part in parts if type(part) is str and part.startswith("request-")]
        if ids:
            found.append(f"{kind.__name__} of {len(parts)}: {ids[:3]}")
    return found


def types() -> Counter[str]:
    gc.collect()
    return Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())


def test_engine_does_not_leak_finished_requests(engine: Engine) -> None:
    counts = []
    for first in range(0, 3 * MANY, MANY):
        run(engine, first, MANY)
        counts.append(types())
    # Objects made once, such as a cache of weak references, appear in one of two rounds; leaked ones in both.
    grown = (counts[2] - counts[1]) & (counts[1] - counts[0])
    assert not {name: count for name, count in grown.items() if count >= MANY // 6}
    assert not kept_ids()


def test_products_run_only_at_padded_batch_sizes(engine: Engine, multiplied: set[int]) -> None:
    run(engine, 1000, 24)
    assert max(multiplied) > 64
    assert all(padded_size(size) == size for size in multiplied)
