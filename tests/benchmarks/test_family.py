"""The family benchmark alternates its arms, forms ratios within rounds, and lists missing measurements."""

import argparse
import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from benchmarks.checkpoints.small_models import SMALL_MODELS
from benchmarks.ensemble import Count, FamilyLoad, beside, input_codes
from benchmarks.loads import Load, Trace, arrivals, follow, run_open
from stretto_client import RequestRefused, SpeechEvent
from tests.patience import PATIENCE_S

FRAME_S = 0.02


class FakeServer:
    """Server in simulated time, slowed down by guidance and by each listener."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.listening = 0
        self.clock = 0.0

    def perf_counter(self) -> float:
        return self.clock

    async def speak(self, text: str, options: dict[str, Any]) -> Trace:
        self.asked.append(options)
        await asyncio.sleep(0.01)
        seconds = 0.1 * (2 if options.get("guidance_scale", 1.0) != 1.0 else 1) * (1 + self.listening)
        self.clock += seconds
        audio_s = options["audio"]["max_rows"] * FRAME_S
        return Trace(0.0, arrivals=[seconds / 2, seconds], durations=[audio_s / 2] * 2, sound=0.0, finished=seconds)

    async def listen(self, seed: int) -> float:
        self.listening += 1
        await asyncio.sleep(0.001)
        self.listening -= 1
        return float(seed)


def load(name: str, server: FakeServer, count: Count = dict, **flags: Any) -> FamilyLoad:
    given = {"family": name, "guidance": None, "listeners": None, "rounds": 2, "requests": 2, "frames": 50}
    model, arguments = SMALL_MODELS[name], argparse.Namespace(**given | {"open_s": 0.5} | flags)
    return FamilyLoad(model, server.speak, server.listen if model.listen else None, arguments, count)


def test_guidance_cost_is_measured_for_families_that_support_it(monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer()
    monkeypatch.setattr("benchmarks.loads.time", server)
    record = asyncio.run(load("bagpiper-small", server).measure(3))
    assert record["cfg_retention"] == pytest.approx(0.5)
    assert record["audio_rtf_p50"] == pytest.approx(0.2)
    assert "left_out" not in record
    assert record["unguided_total"] == 0
    assert {options["guidance_scale"] for options in server.asked} == {3.0, 1.0}
    assert all(options["audio"] == {"min_rows": 50, "max_rows": 50} for options in server.asked)
    assert all(options["text"]["min_rows"] == options["text"]["max_rows"] for options in server.asked)
    assert len(server.asked) == 3 * 3 * 3 * 2, "three arms, two rounds and one to warm up, three streams, two each"


def test_guidance_cost_is_left_out_for_unguided_families() -> None:
    server = FakeServer()
    record = asyncio.run(load("opuslm-small", server).measure(1))
    assert "cfg_retention" not in record
    assert "opuslm" in record["left_out"]["cfg_retention"]
    assert not any("guidance_scale" in options or "text" in options for options in server.asked)


def test_row_limits_include_the_rows_after_the_last_frame() -> None:
    server = FakeServer()
    record = asyncio.run(load("higgs-audio-small", server).measure(1))
    assert record["frames"] == 50
    assert {tuple(options["audio"].values()) for options in server.asked} == {(57, 57)}


def test_mixed_load_is_compared_with_speech_only_load() -> None:
    record = asyncio.run(load("dialogue-small", FakeServer(), listeners=1).measure(1))
    mixed = record["mixed"]
    assert mixed["listeners"] == 1
    assert mixed["answers"] > 0
    assert mixed["audio_rtf_p50"] >= record["audio_rtf_p50"]
    assert mixed["rtf_ratio"] == mixed["ttfp_ratio"] >= 1.0
    assert asyncio.run(load("dialogue-small", FakeServer(), listeners=0).measure(1))["mixed"]["answers"] == 0


def test_unguided_frames_are_counted() -> None:
    class Events:
        async def __aiter__(self) -> AsyncIterator[SpeechEvent]:
            for scale in (3.0, None):
                report = None if scale is None else {"guidance_scale": scale, "num_frames": 50, "guided_frames": 47}
                yield SpeechEvent(None, "u", 0, "audio", report=report)

    stream: Any = Events()
    trace = asyncio.run(follow(Trace(sent=0.0), stream))
    assert trace.unguided_frames == 3
    assert trace.finished is not None


def test_background_transcription_ends_with_the_measured_streams() -> None:
    async def speaking() -> tuple[list[Trace], float]:
        await asyncio.sleep(0.05)
        return [], 1.0

    async def listened() -> list[float]:
        _, answers = await asyncio.wait_for(beside(FakeServer().listen, 2, itertools.count(1), speaking()), PATIENCE_S)
        return answers

    answers = asyncio.run(listened())
    assert len(set(answers)) == len(answers) >= 2, "no request is asked twice"


def test_refused_transcription_fails_the_benchmark_run() -> None:
    async def refuse(seed: int) -> float:
        raise RequestRefused("no ears")

    async def speaking() -> tuple[list[Trace], float]:
        await asyncio.sleep(0.01)
        return [], 1.0

    with pytest.raises(RequestRefused, match="no ears"):
        asyncio.run(beside(refuse, 1, itertools.count(1), speaking()))


def test_opuslm_audio_input_has_nine_code_streams() -> None:
    codes = input_codes(np.random.default_rng(0))
    assert [len(stream) for stream in codes] == [250] * 9
    assert max(map(max, codes[1:])) < 1024


def test_cpu_time_counts_only_the_measured_streams() -> None:
    server, rounds = FakeServer(), itertools.count()

    def count() -> dict[str, float]:
        return {"engine": 0.5 * len(server.asked), "client": 0.3 * len(server.asked) + next(rounds) // 2}

    record = asyncio.run(load("qwen3-tts-small", server, count).measure(3))
    assert record["left_out"].keys() == {"cfg_retention", "mixed"}
    assert record["frames_per_engine_cpu_s"] == pytest.approx(50 / 0.5)
    assert record["frames_per_cpu_s"] == pytest.approx(50 / 0.8)
    assert record["cpu_ms_per_frame"] == pytest.approx({"engine": 10.0, "client": 6.0})
    assert "frames_per_cpu_s" not in asyncio.run(load("opuslm-small", FakeServer()).measure(1))


def test_open_loop_sends_without_waiting_for_responses() -> None:
    seen: list[dict[str, Any]] = []
    all_sent = asyncio.Event()

    async def speak(text: str, options: dict[str, Any]) -> Trace:
        seen.append(options)
        if len(seen) == 12:
            all_sent.set()
        await all_sent.wait()  # no request is answered before the last one was sent
        return Trace(0.0, arrivals=[1.0], durations=[1.0], sound=0.0, finished=1.0)

    async def sent() -> tuple[list[Trace], float]:
        return await asyncio.wait_for(
            run_open(Load(1, 12, 50, None), 400.0, speak, iter(map(str, range(12)))), PATIENCE_S
        )

    traces, wall_s = asyncio.run(sent())
    assert len(traces) == 12
    assert wall_s >= arrivals(400.0, 12)[-1]
    assert len({options["seed"] for options in seen}) == 12


def test_arrivals_are_poisson_at_the_requested_rate() -> None:
    times = arrivals(5.0, 4001)
    gaps = np.diff(times)
    assert times[0] == 0
    assert gaps.mean() == pytest.approx(1 / 5.0, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 5.0, rel=0.1)  # equal samples of an exponential distribution


def test_open_loop_rate_is_a_share_of_the_measured_rate() -> None:
    server = FakeServer()
    record = asyncio.run(load("qwen3-tts-small", server, open_s=0.4).measure_open(0.5, 200.0))
    assert (record["share"], record["rate"], record["requests"]) == (0.5, 100.0, 40)
    assert len(server.asked) == 40
    assert record["audio_underrun_p50"] == 0
    few = asyncio.run(load("qwen3-tts-small", FakeServer(), open_s=0.01).measure_open(0.5, 200.0))
    assert few["requests"] == 16
