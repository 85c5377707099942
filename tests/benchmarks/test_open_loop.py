"""Arrival times, goodput and knee of the open-loop benchmark."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.open_loop import Mix, closed, figures, opened
from stretto_client import SpeechClient
from stretto_client.capacity.traces import Trace
from tests.client.fake_server import Chunk, ErrorText, FakeServer, Request, Step

SPOKEN: list[Step] = [Chunk(0, 640), Chunk(1, 640, is_final=True, is_last=True)]
FULL: list[Step] = [ErrorText("full: 80 sequences are already in flight; try again")]


def run(script: Callable[[Request], list[Step]], ask: Callable[[SpeechClient], Any]) -> Any:
    async def serve() -> Any:
        server = FakeServer(script)
        try:
            async with SpeechClient(await server.start()) as client:
                return await ask(client)
        finally:
            await server.stop()

    return asyncio.run(serve())


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
