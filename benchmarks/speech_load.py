"""Closed loops of requests: every stream sends its next when the last one has ended, and every text is new."""

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.speech_metrics import Trace
from stretto_client import ClientError, Speech

CITIES = ("Oslo", "Rome", "Boston", "Paris", "Tokyo", "Vienna", "Dublin", "Denver")
ANIMALS = ("dog", "horse", "rabbit", "tiger", "mouse", "monkey", "bird")


@dataclass(frozen=True, slots=True)
class Load:
    """`concurrency` streams of `requests` utterances each, of exactly `frames` frames or, with None, as they come.

    guidance_scale: None where the model knows no guidance. text_rows: of the text before the audio, where there is
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


async def run(load: Load, speak: Speak, lines: Iterator[str]) -> tuple[list[Trace], float]:
    """The traces of one run, and its wall time in seconds."""
    traces: list[Trace] = []

    async def stream(index: int) -> None:
        for turn in range(load.requests):
            traces.append(await speak(next(lines), load.options(seed=1000 * index + turn)))

    begun = time.perf_counter()
    await asyncio.gather(*(stream(index) for index in range(load.concurrency)))
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
        trace.error = str(error)
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
