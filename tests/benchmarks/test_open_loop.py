"""Arrival times, goodput and knee of the open-loop benchmark."""

import argparse
import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.loads import Trace
from benchmarks.open_loop import Mix, closed, figures, is_good, knee, measure, opened, parse, with_target
from stretto.config import EngineConfig
from stretto_client import SpeechClient
from tests.client.fake_server import Chunk, ErrorText, FakeServer, Request, Step

SPOKEN: list[Step] = [Chunk(0, 640), Chunk(1, 640, is_final=True, is_last=True)]
FULL: list[Step] = [ErrorText("full: 80 sequences are already in flight; try again")]


def trace(first_s: float, late_s: float = 0.0, **changes: Any) -> Trace:
    """Return a trace of two chunks of one second each; the second one is `late_s` late."""
    made = Trace(10.0, [10.0 + first_s, 11.0 + first_s + late_s], [1.0, 1.0], sound=0.25, finished=13.0)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def record(rate: float, p95: float = 0.5, refused: float = 0.0) -> dict[str, float]:
    return {"rate": rate, "first_sound_p95": p95, "refused": refused, "target_s": 1.0}


@pytest.mark.parametrize(
    ("made", "good"),
    [
        (trace(0.7), True),
        (trace(0.8), False),  # the silence before the first sound counts
        (trace(0.1, late_s=0.2), True),
        (trace(0.1, late_s=0.3), False),
        (trace(0.1, sound=None), False),
        (trace(0.1, error="failed"), False),
        (trace(0.1, finished=None), False),
    ],
)
def test_good_traces_start_in_time_without_gaps(made: Trace, good: bool) -> None:
    assert is_good(made, target_s=1.0) is good


def test_refused_requests_count_as_offered_but_not_as_successful() -> None:
    refused = Trace(0.0, error="full", is_refused=True, finished=0.1)
    found = figures([trace(0.1), trace(0.9), refused, refused], np.array([0.0, 4.0]), 5.0, target_s=1.0)
    assert (found["offered"], found["refused"], found["good_share"], found["goodput"]) == (4, 0.5, 0.25, 0.25)
    assert (found["requests"], found["success"]) == (2, 1.0)


def test_knee_is_the_last_rate_before_lateness_or_refusals() -> None:
    rates = [record(1), record(2), record(4, p95=1.5), record(8)]
    assert knee(rates) == knee(rates[::-1]) == 2
    assert knee([record(1), record(2, refused=0.02)]) == 1
    assert knee([record(1), record(2, refused=0.01, p95=1.0)]) == 2
    assert knee([record(1, p95=2.0), record(2)]) is None
    assert knee([{"rate": 1, "refused": 1.0, "target_s": 1.0}]) is None, "nobody was heard"


def run(script: Callable[[Request], list[Step]], ask: Callable[[SpeechClient], Any]) -> Any:
    async def serve() -> Any:
        server = FakeServer(script)
        try:
            async with SpeechClient(await server.start()) as client:
                return await ask(client)
        finally:
            await server.stop()

    return asyncio.run(serve())


def test_equal_seeds_draw_equal_requests() -> None:
    seen: list[list[Request]] = [[], []]
    for requests in seen:

        def keep(request: Request, requests: list[Request] = requests) -> list[Step]:
            requests.append(request)
            return SPOKEN

        async def ask(client: SpeechClient) -> None:
            mix = Mix(client, 7)
            for _ in range(30):
                await mix.draw()()

        run(keep, ask)
    texts = [[str(request.get("text")) + str(request["options"]) for request in requests] for requests in seen]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 30
    assert {"pcm_in" in request for request in seen[0]} == {True, False}


def test_open_loop_counts_refusals_and_measures_the_others() -> None:
    async def ask(client: SpeechClient) -> tuple[list[Trace], float]:
        return await opened(Mix(client, 0), np.zeros(40))

    counts = iter(range(1000))
    traces, wall_s = run(lambda _: FULL if next(counts) % 2 else SPOKEN, ask)
    found = figures(traces, np.zeros(40), wall_s, 60.0)
    assert 0.2 < found["refused"] < 0.8
    assert found["success"] == 1.0
    assert 25 < found["offered"] < 40, "the others are to be written down"
    assert run(lambda _: SPOKEN, lambda client: closed(Mix(client, 0), 2, 0.0)) > 0


@pytest.mark.nightly
def test_rates_are_measured_in_ascending_order_with_the_knee() -> None:
    given = argparse.Namespace(seed=0, concurrency=2, seconds=0.05, shares=[2.0, 0.5], least=5, target_s=60.0)
    given.closed_loop_rate = None

    async def ask(client: SpeechClient) -> Any:
        return await measure(client.server, given)

    low, high = run(lambda _: SPOKEN, ask)
    assert (low["share"], high["share"]) == (0.5, 2.0)
    assert low["knee"] == high["knee"] == high["rate"] > low["rate"]
    given.closed_loop_rate = 100.0
    low, high = run(lambda _: SPOKEN, ask)
    assert (low["rate"], high["rate"], high["closed_loop_rate"]) == (50.0, 200.0, 100.0)


def test_first_frame_target_is_set_in_a_repository_copy(tmp_path: Path) -> None:
    engine = tmp_path / "mine" / "language_model" / "1" / "engine.json"
    engine.parent.mkdir(parents=True)
    engine.write_text('{"max_num_seqs": 4}')
    words = ["--model-repository", str(tmp_path / "mine")]
    assert with_target(parse(words), tmp_path) == tmp_path / "mine"
    copy = with_target(parse([*words, "--first-frame-target-s", "1"]), tmp_path)
    assert EngineConfig.from_file(copy / "language_model/1/engine.json", copy).first_frame_target_s == 1
    assert engine.read_text() == '{"max_num_seqs": 4}'
