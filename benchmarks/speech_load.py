"""Loads of requests to speak, every text new: closed loops, in which a stream sends its next request when the last one
has ended, and open ones, whose requests come at random times, whatever has become of those before.
"""

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.speech_metrics import Trace
from stretto_client import ClientError, ServerFull, Speech

CITIES = ("Oslo", "Rome", "Boston", "Paris", "Tokyo", "Vienna", "Dublin", "Denver")
NOISE_RATE = 16_000  # Hz
ANIMALS = ("dog", "horse", "rabbit", "tiger", "mouse", "monkey", "bird")


@dataclass(frozen=True, slots=True)
class Load:
    """`concurrency` streams of `requests` utterances each, of exactly `frames` frames or, with None, as they come.

    guidance_scale: None where its authors guide nothing. text_rows: of the text before the audio, where there is
    one and it is forced too.
    """

    concurrency: int
    requests: int
    frames: int | None
    guidance_scale: float | None
    text_rows: int | None = None

    def options(self, seed: int) -> dict[str, Any]:
        """The request's options."""
        options: dict[str, Any] = {"seed": seed}
        if self.guidance_scale is not None:
            options["guidance_scale"] = self.guidance_scale
        for segment, rows in (("audio", self.frames), ("text", self.text_rows)):
            if rows is not None:
                options[segment] = {"min_rows": rows, "max_rows": rows}
        return options


Speak = Callable[[str, dict[str, Any]], Awaitable[Trace]]


def texts() -> Iterator[str]:
    """Sentences of like length that do not repeat for a long while."""
    for number, city, animal in itertools.product(range(10, 100), CITIES, ANIMALS):
        yield f"The train to {city} leaves in {number} minutes and the {animal} is late."


def noise(seconds: float, seed: int) -> np.ndarray:
    """Something quiet to be written down, at NOISE_RATE [n], float32."""
    return (0.05 * np.random.default_rng(seed).standard_normal(int(seconds * NOISE_RATE))).astype(np.float32)


async def run(load: Load, speak: Speak, lines: Iterator[str]) -> tuple[list[Trace], float]:
    """The traces of one run, and its wall time in seconds."""
    traces: list[Trace] = []

    async def stream(index: int) -> None:
        for turn in range(load.requests):
            traces.append(await speak(next(lines), load.options(seed=1000 * index + turn)))

    begun = time.perf_counter()
    await asyncio.gather(*(stream(index) for index in range(load.concurrency)))
    return traces, time.perf_counter() - begun


def arrivals(rate: float, number: int, seed: int = 0) -> np.ndarray:
    """When `number` requests of which `rate` come in a second are sent, in seconds from the first [n]: at random, as
    those of people who know nothing of each other (a Poisson process)."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, number - 1)
    return np.concatenate([[0.0], np.cumsum(gaps)])


async def run_open(load: Load, rate: float, speak: Speak, lines: Iterator[str]) -> tuple[list[Trace], float]:
    """As `run`, of an open loop: as many requests as `load` has in all, `rate` a second."""
    traces: list[Trace] = []

    async def send(index: int, due_s: float) -> None:
        await asyncio.sleep(begun + due_s - time.perf_counter())
        traces.append(await speak(next(lines), load.options(seed=index)))

    begun = time.perf_counter()
    times = arrivals(rate, load.concurrency * load.requests)
    await asyncio.gather(*(send(index, due_s) for index, due_s in enumerate(times)))
    return traces, time.perf_counter() - begun


async def follow(trace: Trace, stream: Speech) -> Trace:
    """`trace` with what has come of `stream`, to its end; an error is kept in it."""
    try:
        async for event in stream:
            if event.pcm is not None and event.pcm.size:
                trace.add(time.perf_counter(), event.pcm, event.sample_rate)
            if event.report is not None and event.report["guidance_scale"] != 1.0:
                trace.unguided_frames = event.report["num_frames"] - event.report["guided_frames"]
    except ClientError as error:
        trace.error, trace.is_refused = str(error), isinstance(error, ServerFull)
    trace.finished = time.perf_counter()
    return trace


def check(traces: list[Trace]) -> None:
    """RuntimeError where requests failed: figures of the others would be of another load."""
    failed = [trace.error for trace in traces if trace.error]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(traces)} requests failed: {failed[0]}")


def ratio(numerators: list[float], denominators: list[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return round(statistics.median(a / b for a, b in zip(numerators, denominators, strict=True)), 4)
