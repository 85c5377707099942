"""Callers share the threads' time equally, and a job of a cancelled task does not begin."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from stretto_client.fair_threads import CALLER, Turns
from tests.patience import PATIENCE_S, until_async


class Clock:
    """Clock that a job advances by the time that it takes."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.log: list[str] = []

    def spend(self, caller: str, time_s: float) -> None:
        self.log.append(caller)
        self.now_s += time_s


class Bench:
    """One thread, which is held until the test lets the jobs run."""

    def __init__(self) -> None:
        self.clock, self._may_run = Clock(), threading.Event()
        self.turns = Turns(1, "test", lambda: self.clock.now_s)
        self.tasks: list[asyncio.Task[None]] = []

    async def submit(self, caller: str, times_s: list[float]) -> None:
        """Submit a caller's jobs at once."""
        for time_s in times_s:
            self.tasks.append(asyncio.create_task(self._ask(caller, time_s)))
        await asyncio.sleep(0)

    async def _ask(self, caller: str, time_s: float) -> None:
        CALLER.set(caller)
        await self.turns.run(self.clock.spend, caller, time_s)

    async def hold(self) -> asyncio.Task[bool]:
        begun = threading.Event()

        def wait() -> bool:
            begun.set()
            return self._may_run.wait(PATIENCE_S)

        held = asyncio.create_task(self.turns.run(wait))
        await until_async(begun.is_set)
        return held

    async def run(self) -> str:
        """Let the jobs run, and return the callers in the order of their jobs."""
        self._may_run.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.wrap_future(self.turns._threads.submit(lambda: None))  # behind the account of the last job
        return "".join(self.clock.log)

    def close(self) -> None:
        self._may_run.set()
        self.turns.close()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    opened = Bench()
    yield opened
    opened.close()


async def test_a_caller_waits_for_one_job_of_another_one(bench: Bench) -> None:
    await bench.hold()
    await bench.submit("a", [1.0] * 20)
    await bench.submit("b", [1.0] * 2)
    assert (await bench.run())[:5] == "ababa"


async def test_time_is_shared_not_the_number_of_jobs(bench: Bench) -> None:
    await bench.hold()
    await bench.submit("a", [10.0] * 3)
    await bench.submit("b", [1.0] * 12)
    assert await bench.run() == "a" + "b" * 10 + "a" + "bb" + "a"


async def test_a_caller_who_was_away_is_not_owed_the_time(bench: Bench) -> None:
    await bench.hold()
    await bench.submit("a", [1.0] * 4)
    await bench.run()
    assert bench.clock.log == ["a"] * 4
    bench.clock.log.clear()
    bench._may_run.clear()
    await bench.hold()
    await bench.submit("b", [1.0] * 4)
    await bench.submit("a", [1.0] * 4)
    assert await bench.run() == "babababa"


async def test_a_job_does_not_begin_after_its_caller_has_left(bench: Bench) -> None:
    await bench.hold()
    await bench.submit("a", [1.0] * 3)
    await bench.submit("b", [1.0])
    for task in bench.tasks[:3]:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert await bench.run() == "b"


async def test_results_and_errors_are_those_of_the_call(bench: Bench) -> None:
    assert await bench.turns.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await bench.turns.run(divmod, 7, 0)
    assert await bench.turns.run(int, "11", base=2) == 3


async def test_callers_who_have_left_are_forgotten(bench: Bench) -> None:
    for number in range(100):
        await bench.submit(f"caller {number}", [1.0])
        await asyncio.gather(*bench.tasks)
    assert len(bench.turns._used_s) < 3
