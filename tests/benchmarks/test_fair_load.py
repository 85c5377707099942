"""The fair load warms up at its rate, draws the lengths of its replies, and begins again with more clients that lag."""

import asyncio
from statistics import mean
from typing import Any

import pytest

from benchmarks.fair_load import SENTENCE_S, FairLoad
from benchmarks.loads import Load, run_open
from stretto_client.capacity.traces import Trace
from tests.patience import PATIENCE_S


def test_replies_last_as_long_as_read_sentences() -> None:
    """A request's seed determines its length, and the lengths are those of the list."""
    load = FairLoad(1.0, 4, frame_rate=12.5).load()
    rows = [load.options(seed)["audio"]["max_rows"] for seed in range(400)]
    assert rows == [load.options(seed)["audio"]["min_rows"] for seed in range(400)]
    assert set(rows) == {round(12.5 * seconds) for seconds in SENTENCE_S}
    assert mean(SENTENCE_S) == pytest.approx(4.4, abs=0.03)
    assert mean(rows) == pytest.approx(55, abs=3)


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
    assert sorted(seeds) == [first + index for index in range(12)]  # on a busy machine, several are due at once
    assert sorted(each.audio_s for each in measured) == [first + index for index in range(7, 12)]
