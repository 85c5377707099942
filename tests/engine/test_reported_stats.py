"""Statistics that the scheduler reports."""

from collections.abc import Iterator

import pytest

from stretto.engine.protocol import STATS_KEY, EngineStats, SharedStats
from stretto.engine.scheduling import step_stats
from stretto.families.tiny.family import TINY
from stretto.testing.checkpoints import make_prompt
from tests.engine.harness import Engine
from tests.random_checkpoints import write_checkpoint
from tests.tiers import ASYNC_BY_DAY

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", params=ASYNC_BY_DAY)
def asynchronous(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def shared(asynchronous: bool) -> Iterator[SharedStats]:
    """Return an engine's own statistics, without leftovers from an earlier engine."""
    stats = SharedStats.create(1)
    yield stats
    stats.close()


@pytest.fixture(scope="module")
def engine(asynchronous: bool, shared: SharedStats, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), TINY, "tiny", hidden=64, layers=1)
    few_blocks = {"max_model_len": 160, "num_gpu_blocks_override": 9, "max_num_seqs": 4, "max_num_batched_tokens": 48}
    running = Engine(
        folder, async_scheduling=asynchronous, additional_config={STATS_KEY: str(shared.path)}, **few_blocks
    )
    yield running
    running.shutdown()


def test_engine_stats_are_consistent(engine: Engine, shared: SharedStats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_stats, "PERIOD_S", 0.0)
    prompts = {f"r{index}": make_prompt(TINY, index, "tts", guidance_scale=2.0) for index in range(6)}
    seen: list[EngineStats] = []
    before = engine.scheduler.stats.values.engine_steps_total
    answers = engine.run(prompts, after_step=lambda _: seen.append(shared.read()))
    last = seen[-1]
    assert before + 50 < last.engine_steps_total <= engine.num_steps
    assert last.engine_busy_seconds_total > 0
    assert last.step_seconds > 0
    assert max(stats.running_pairs for stats in seen) == 2
    assert max(stats.held_pairs for stats in seen) >= 1
    assert max(stats.waiting_requests for stats in seen) >= 2
    assert 0.5 < max(stats.kv_usage for stats in seen) <= 1
    assert (last.running_requests, last.running_pairs, last.held_pairs, last.kv_usage) == (0, 0, 0, 0)
    rows = sum(len(prompt.rows) + len(answers[name].rows) for name, prompt in prompts.items())
    assert last.engine_rows_total > rows
    preempted = sum(answer.trailer.num_preemptions for answer in answers.values())
    assert last.preemptions_total >= last.preempted_pairs_total == preempted > 0


def test_last_step_is_reported(engine: Engine, shared: SharedStats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_stats, "PERIOD_S", 1e9)
    seen: list[EngineStats] = []
    engine.run({"one": make_prompt(TINY, 0, "tts")}, after_step=lambda _: seen.append(shared.read()))
    assert seen[-1].engine_steps_total == engine.scheduler.stats.values.engine_steps_total > seen[0].engine_steps_total
    assert len({stats.engine_steps_total for stats in seen}) <= 3
    assert seen[-1].running_requests == 0


def test_aborted_request_resets_reported_stats(
    engine: Engine, shared: SharedStats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_stats, "PERIOD_S", 0.0)
    prompt = make_prompt(TINY, 0, "tts", guidance_scale=2.0)
    shown: list[float] = []
    engine.run({"one": prompt}, aborts={"one": 12}, after_step=lambda _: shown.append(shared.read().running_requests))
    assert max(shown) > 0
    assert shared.read().running_requests == shared.read().kv_usage == 0
