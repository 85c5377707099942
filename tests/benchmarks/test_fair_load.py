"""The fair load warms up at its rate, draws the lengths of its replies, and begins again with more clients that lag."""

import asyncio
from collections.abc import Callable
from statistics import mean
from typing import Any

import pytest

from benchmarks import fair_load
from benchmarks.fair_load import SENTENCE_S, FairLoad, measure_fair
from benchmarks.loads import Load, Trace, run_open, summarise
from stretto_client import SpeechClient
from tests.patience import PATIENCE_S


def trace(arrivals: list[float], durations: list[float]) -> Trace:
    return Trace(0.0, arrivals, durations, sound=0.0, finished=arrivals[-1])


def test_replies_last_as_long_as_read_sentences() -> None:
    """A request's seed determines its length, and the lengths are those of the list."""
    load = FairLoad(1.0, 4, frame_rate=12.5, tail_rows=3).load()
    rows = [load.options(seed)["audio"]["max_rows"] for seed in range(400)]
    assert rows == [load.options(seed)["audio"]["min_rows"] for seed in range(400)]
    assert set(rows) == {round(12.5 * seconds) + 3 for seconds in SENTENCE_S}
    assert mean(SENTENCE_S) == pytest.approx(4.4, abs=0.03)
    assert mean(rows) == pytest.approx(55 + 3, abs=3)


@pytest.mark.parametrize("client", [0, 1])
def test_requests_of_the_warm_up_are_sent_but_not_measured(client: int) -> None:
    seeds = list[int]()

    async def speak(text: str, options: dict[str, Any]) -> Trace:
        seeds.append(options["seed"])
        return Trace(0.0, [1.0], [float(options["seed"])], sound=0.0, finished=1.0)

    async def sent() -> list[Trace]:
        lines = iter(map(str, range(12)))
        running = run_open(Load(1, 5, 50, None), 400.0, speak, lines, warm_up_s=7 / 400, client=client)
        return (await asyncio.wait_for(running, PATIENCE_S))[0]

    first = client << 20
    measured = asyncio.run(sent())
    assert seeds == [first + index for index in range(12)]
    assert [each.audio_s for each in measured] == [first + index for index in range(7, 12)]


def test_underruns_are_requests_whose_player_waits() -> None:
    late = trace([1.0, 2.5], [1.0, 1.0])
    in_time = trace([1.0, 1.5, 2.9999], [1.0, 1.0, 1.0])
    assert summarise([late, in_time, trace([1.0], [9.0])], 1.0)["underruns"] == 1


def speaker(client: SpeechClient) -> Callable[..., Any]:
    raise AssertionError("no request is sent")


@pytest.mark.parametrize(("lags_s", "clients"), [((0.001,), 1), ((0.02, 0.001), 2), ((0.02, 0.02, 0.02), 4)])
def test_load_is_repeated_with_more_clients_while_they_lag(
    lags_s: tuple[float, ...], clients: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()

    async def run_clients(*given: Any) -> tuple[list[Trace], list[float]]:
        asked.append(given[-1])
        return [trace([1.0, 1.5], [1.0, 1.0])], [lags_s[len(asked) - 1]] * 3

    monkeypatch.setattr(fair_load, "run_clients", run_clients)
    record = asyncio.run(measure_fair("address", speaker, FairLoad(2.0, 8)))
    assert asked == [1, 2, 4][: len(lags_s)]
    assert (record["clients"], record["client_lag_p95"], record["warm_up_s"]) == (clients, lags_s[-1], 30.0)
    assert record["audio_ttfp_p50"] == record["first_sound_p50"] == 1.0


def test_clients_share_the_rate_and_the_requests() -> None:
    assert FairLoad(20.0, 301).of_one(4) == FairLoad(5.0, 76)
