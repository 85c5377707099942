from types import SimpleNamespace

import pytest

from stretto.engine.environment import prepare_environment

pytestmark = pytest.mark.engine
prepare_environment()

from benchmarks.scheduler import SchedulerWatch  # noqa: E402


class Scheduler:
    """Scheduler that returns the given schedule."""

    def schedule(self, scheduled: dict[str, int]) -> SimpleNamespace:
        sum(range(20_000))
        return SimpleNamespace(num_scheduled_tokens=scheduled)

    def update_from_output(self, output: SimpleNamespace) -> None:
        sum(range(1000))


def test_only_pure_decode_steps_are_timed() -> None:
    scheduler = Scheduler()
    watch = SchedulerWatch(scheduler, num_rows=2)
    for scheduled in ({"a": 1, "b": 1}, {"a": 7, "b": 1}, {"a": 1}, {"a": 1, "b": 1}):
        scheduler.update_from_output(scheduler.schedule(scheduled))
    assert len(watch.schedule_s) == len(watch.update_s) == 2
    figures = watch.take_ms()
    assert figures["schedule"] > figures["update"] > 0
    assert figures["all"] == figures["schedule"] + figures["update"]
    assert watch.schedule_s == []
