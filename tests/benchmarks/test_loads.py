"""Metrics that clients observe, and the comparison of two paths to a server."""

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import loads
from benchmarks.loads import Load, Trace, compare, summarise, underrun_s


def trace_of(arrivals: list[float], durations: list[float]) -> Trace:
    return Trace(sent=0.0, arrivals=arrivals, durations=durations, sound=0.0, finished=arrivals[-1])


def slow_underrun(arrivals: list[float], durations: list[float]) -> float:
    """Simulate a player in steps of 1 ms, and return the start delay that avoids every underrun."""
    for delay_ms in range(100_000):
        position = arrivals[0] + delay_ms / 1000
        late = False
        for arrival, duration in zip(arrivals, durations, strict=True):
            late |= arrival > position + 1e-9
            position += duration
        if not late:
            return delay_ms / 1000
    raise AssertionError("never in time")


@pytest.mark.parametrize(
    ("arrivals", "durations"),
    [
        ([1.0], [0.1]),
        ([1.0, 1.05], [0.1, 0.1]),
        ([1.0, 1.3, 1.35], [0.1, 0.1, 0.5]),
        ([1.0, 1.1, 1.9], [0.5, 0.1, 1.0]),
    ],
)
def test_underrun_is_the_playback_delay_a_player_needs(arrivals: list[float], durations: list[float]) -> None:
    assert underrun_s(trace_of(arrivals, durations)) == pytest.approx(slow_underrun(arrivals, durations), abs=1.1e-3)


def test_silence_and_errors_do_not_count_as_success() -> None:
    silent = Trace(sent=0.0, finished=2.0)
    silent.add(1.0, np.full(1600, 1e-4, np.float32), 16000)
    failed = Trace(sent=0.0, finished=2.0, error="boom")
    failed.add(1.0, np.full(1600, 0.1, np.float32), 16000)
    heard = Trace(sent=0.0, finished=2.0)
    heard.add(1.0, np.full(1600, 0.1, np.float32), 16000)
    summary = summarise([silent, failed, heard], wall_s=2.0)
    assert summary["success"] == pytest.approx(1 / 3)
    assert summary["audio_throughput"] == pytest.approx(0.05)
    assert summary["audio_ttfp_p50"] == pytest.approx(1.0)
    assert summary["audio_rtf_p50"] == pytest.approx(20.0)


class FakeWays:
    """Two paths to a server in simulated time: through a process that takes 3 ms per request, or around it."""

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


def test_compared_paths_alternate_and_metrics_are_per_round(monkeypatch: pytest.MonkeyPatch) -> None:
    ways: Any = FakeWays()
    monkeypatch.setattr(loads, "time", ways)
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
