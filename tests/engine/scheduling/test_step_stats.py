"""Steps are counted as they run, and published at intervals."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from stretto.engine.protocol import STATS_KEY, EngineStats, SharedStats
from stretto.engine.scheduling import step_stats
from stretto.engine.scheduling.held_replies import HeldReplies
from stretto.engine.scheduling.planner import PairPlanner
from stretto.engine.scheduling.request_table import RequestTable
from stretto.engine.scheduling.step_clock import StepClock
from stretto.engine.scheduling.step_stats import StepStats, share_of
from tests.engine.scheduling.tables import FakeBlocks, arrive, pair, run, table


class Clock:
    def __init__(self) -> None:
        self.now = 100.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


def stats(known: RequestTable, shared: list[EngineStats], clock: Clock | None = None) -> StepStats:
    guidance = SimpleNamespace(num_dropped=3, num_restored=1)
    return StepStats(
        known,
        guidance,
        HeldReplies(known, PairPlanner(known, FakeBlocks()), FakeBlocks()),
        FakeBlocks(),
        lambda values: shared.append(replace(values)),
        StepClock() if clock is None else StepClock(lambda: clock.now),
    )


def test_overlapping_steps_count_time_once(clock: Clock) -> None:
    counts = stats(table(), [], clock)
    counts.begin_step()
    clock.now += 2
    counts.begin_step()
    clock.now += 1
    counts.end_step(4, [], 0)
    assert counts.values.step_seconds == 3
    clock.now += 1
    counts.end_step(5, [], 0)
    assert counts.values.step_seconds == 2
    assert counts.values.engine_busy_seconds_total == 4
    assert counts.values.engine_steps_total == 2


def test_empty_step_is_not_counted(clock: Clock) -> None:
    counts = stats(table(), [], clock)
    counts.begin_step()
    clock.now += 2
    counts.end_step(0, [], 0)
    values = counts.values
    assert (values.engine_steps_total, values.engine_busy_seconds_total, values.step_seconds) == (0, 0, 0)


def test_rows_and_preemptions_are_counted() -> None:
    known = table()
    counts = stats(known, [])
    counts.end_schedule(3)
    counts.end_schedule(4)
    for state in (*map(known.get, [request.request_id for request in pair(known, "one")]),):
        counts.count_preemption(state)
    arrive(known, "single", guidance_scale=1.0)
    counts.count_preemption(known["single"])
    values = counts.values
    assert (values.engine_rows_total, values.preemptions_total, values.preempted_pairs_total) == (7, 3, 1)


def test_shared_stats_report_the_scheduler_state() -> None:
    known, shared = table(), []
    whole, (waits_for, _), single = pair(known, "whole"), pair(known, "held"), arrive(known, "s", guidance_scale=1.0)
    stats(known, shared).report(run(*whole, waits_for, single), num_waiting=5)
    (values,) = shared
    assert (values.running_requests, values.waiting_requests) == (4, 5)
    assert (values.running_pairs, values.held_pairs) == (1, 1)
    assert (values.dropped_halves_total, values.restored_halves_total) == (3, 1)
    assert values.kv_usage == 0.25


def test_step_stats_are_shared_periodically_and_when_idle(clock: Clock) -> None:
    known, shared = table(), []
    running = run(arrive(known, "one"))
    counts = stats(known, shared, clock)
    for _ in range(3):
        counts.begin_step()
        clock.now += step_stats.PERIOD_S / 4
        counts.end_step(1, running, 0)
    assert len(shared) == 1
    counts.begin_step()
    counts.end_step(1, [], 0)
    assert len(shared) == 2


def test_each_scheduler_writes_its_own_stats_row() -> None:
    memory = SharedStats.create(2)
    parallel = SimpleNamespace(data_parallel_size=2, data_parallel_rank=1)
    share = share_of(SimpleNamespace(parallel_config=parallel, additional_config={STATS_KEY: str(memory.path)}))
    memory.close()
    share(EngineStats(engine_steps_total=7))
    assert memory.read().engine_steps_total == 7
    assert share_of(SimpleNamespace(parallel_config=parallel, additional_config={})) is None
