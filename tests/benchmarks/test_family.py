"""The family benchmark alternates its arms, forms ratios within rounds, and lists missing measurements."""

import argparse
import asyncio
from typing import Any

import pytest

from benchmarks.ensemble import Count, FamilyLoad
from lab.releases.small_models import SMALL_MODELS
from stretto_client.capacity.traces import Trace

FRAME_S = 0.02


class FakeServer:
    """Server in simulated time, slowed down by guidance."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.clock = 0.0

    def perf_counter(self) -> float:
        return self.clock

    async def speak(self, text: str, options: dict[str, Any]) -> Trace:
        self.asked.append(options)
        await asyncio.sleep(0.01)
        seconds = 0.1 * (2 if options.get("guidance_scale", 1.0) != 1.0 else 1)
        self.clock += seconds
        audio_s = options["audio"]["max_rows"] * FRAME_S
        return Trace(0.0, arrivals=[seconds / 2, seconds], durations=[audio_s / 2] * 2, sound=0.0, finished=seconds)


def load(name: str, server: FakeServer, count: Count = dict, **flags: Any) -> FamilyLoad:
    given = {"family": name, "guidance": None, "rounds": 2, "requests": 2, "frames": 50}
    model, arguments = SMALL_MODELS[name], argparse.Namespace(**given | {"open_s": 0.5} | flags)
    return FamilyLoad(model, server.speak, arguments, count)


def test_guidance_cost_is_measured_for_families_that_support_it(monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer()
    monkeypatch.setattr("benchmarks.loads.time", server)
    record = asyncio.run(load("bagpiper-small", server).measure(3))
    assert record["cfg_retention"] == pytest.approx(0.5)
    assert record["audio_rtf_p50"] == pytest.approx(0.2)
    assert record["unguided_total"] == 0
    assert {options["guidance_scale"] for options in server.asked} == {3.0, 1.0}
    assert all(options["audio"] == {"min_rows": 50, "max_rows": 50} for options in server.asked)
    assert all(options["text"]["min_rows"] == options["text"]["max_rows"] for options in server.asked)
    assert len(server.asked) == 2 * 3 * 3 * 2, "two arms, two rounds and one to warm up, three streams, two each"
