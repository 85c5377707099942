"""Two ways take turns, and the process between is charged for its own way alone."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import speech_load
from benchmarks.speech_load import Load
from benchmarks.speech_metrics import Trace
from benchmarks.two_ways import compare


class FakeWays:
    """Two ways to a server, by a clock of its own: through a process that works for 3 ms a request, or past it."""

    def __init__(self) -> None:
        self.clock = self.used_s = 0.0
        self.order = list[str]()
        self.asked = list[tuple[str, int]]()

    def perf_counter(self) -> float:
        return self.clock

    def cpu_times(self) -> Any:
        return SimpleNamespace(user=self.used_s, system=0.0)

    async def through(self, text: str, options: dict[str, Any]) -> Trace:
        self.used_s += 0.003
        self.asked.append((text, options["seed"]))
        return self._answer("through", 0.5)

    async def past(self, text: str, options: dict[str, Any]) -> Trace:
        self.used_s += 1.0  # of others
        self.asked.append((text, options["seed"]))
        return self._answer("past", 0.4)

    def _answer(self, way: str, seconds: float) -> Trace:
        self.order.append(way)
        sent, self.clock = self.clock, self.clock + seconds
        return Trace(sent, arrivals=[self.clock], durations=[2.0], sound=0.0, finished=self.clock)


def test_the_ways_take_turns_and_figures_are_of_their_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    ways: Any = FakeWays()
    monkeypatch.setattr(speech_load, "time", ways)
    record = asyncio.run(compare("gateway", Load(1, 2, 50, 2.0), 3, ways, ways.through, ways.past))
    first, then = ["past", "past", "through", "through"], ["through", "through", "past", "past"]
    assert ways.order == ["through", "past", *first, *then, *first]
    for begin in (2, 6, 10):
        assert ways.asked[begin : begin + 2] == ways.asked[begin + 2 : begin + 4], "each way has the same to speak"
    assert len(set(ways.asked[2:])) == 6
    assert record["gateway_throughput_ratio"] == pytest.approx(0.8)
    assert record["gateway_first_audio_ms"] == pytest.approx(100.0)
    assert record["gateway_cpu_ms_per_audio_s"] == pytest.approx(1.5)
    assert (record["audio_throughput"], record["audio_ttfp_p50"]) == pytest.approx((4.0, 0.5))
