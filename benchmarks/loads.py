"""Loads of speech requests, and metrics that their clients observe.

In a closed loop, a stream sends its next request when the last one has ended. In an open loop, requests are sent at
random times, whether or not earlier ones have ended. Texts do not repeat. Metrics are defined in benchmarks/README.md.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.harness import median_ratio
from stretto_client import SpeechClient
from stretto_client.capacity.traces import Trace, follow, percentiles, underrun_s

NOISE_RATE = 16_000  # Hz
SHORTEST_UNDERRUN_S = 0.001  # shorter waits are within a chunk's own transport


def summarise(traces: Sequence[Trace], wall_s: float) -> dict[str, float]:
    """Return the metrics of a run that took `wall_s` seconds."""
    good = [trace for trace in traces if trace.succeeded]
    several = [underrun_s(trace) for trace in good if len(trace.arrivals) > 1]
    summary = {
        "requests": len(traces),
        "success": len(good) / max(len(traces), 1),
        "audio_throughput": round(sum(trace.audio_s for trace in good) / wall_s, 3),
        "requests_per_s": round(len(good) / wall_s, 3),
    }
    summary |= percentiles("audio_ttfp", [trace.first_s for trace in good])
    summary |= percentiles("first_sound", [trace.first_s + trace.sound for trace in good if trace.sound is not None])
    summary |= percentiles("itl", [gap for trace in good for gap in np.diff(trace.arrivals)])
    summary |= percentiles(
        "audio_rtf", [(trace.finished - trace.sent) / trace.audio_s for trace in good if trace.finished is not None]
    )
    summary |= percentiles("audio_underrun", several)
    summary["underruns"] = sum(seconds > SHORTEST_UNDERRUN_S for seconds in several)
    for limit_ms in (50, 100, 200):
        if several:
            summary[f"C{limit_ms}"] = round(float(np.mean(np.asarray(several) <= limit_ms / 1000)), 4)
    return summary


@dataclass(frozen=True, slots=True)
class Load:
    """`concurrency` streams of `requests` utterances each.

    Attributes:
        frames: Forced number of frames per utterance; None lets utterances end by themselves.
        guidance_scale: Guidance scale; None for a model that is not guided.
        text_rows: Forced number of text rows before the audio; None if there are none or they are not forced.
        lengths: Forced numbers of frames, one of which a request's seed selects; empty for `frames`.
    """

    concurrency: int
    requests: int
    frames: int | None
    guidance_scale: float | None
    text_rows: int | None = None
    lengths: tuple[int, ...] = ()

    def options(self, seed: int) -> dict[str, Any]:
        options: dict[str, Any] = {"seed": seed}
        if self.guidance_scale is not None:
            options["guidance_scale"] = self.guidance_scale
        frames = np.random.default_rng(seed).choice(self.lengths).item() if self.lengths else self.frames
        for segment, rows in (("audio", frames), ("text", self.text_rows)):
            if rows is not None:
                options[segment] = {"min_rows": rows, "max_rows": rows}
        return options


Speak = Callable[[str, dict[str, Any]], Awaitable[Trace]]


def noise(seconds: float, seed: int) -> np.ndarray:
    """Return quiet noise, float32 [n] at NOISE_RATE, as input for a transcription."""
    return (0.05 * np.random.default_rng(seed).standard_normal(int(seconds * NOISE_RATE))).astype(np.float32)


async def run(load: Load, speak: Speak, lines: Iterator[str]) -> tuple[list[Trace], float]:
    """Run a closed loop; return its traces and its wall time in seconds."""
    traces: list[Trace] = []

    async def stream(index: int) -> None:
        for turn in range(load.requests):
            traces.append(await speak(next(lines), load.options(seed=1000 * index + turn)))

    begun = time.perf_counter()
    await asyncio.gather(*(stream(index) for index in range(load.concurrency)))
    return traces, time.perf_counter() - begun


def arrivals(rate: float, number: int, seed: int = 0) -> np.ndarray:
    """Return the times [number] at which a Poisson process sends requests, in seconds after the first one."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, number - 1)
    return np.concatenate([[0.0], np.cumsum(gaps)])


CLIENT_SEEDS = 1 << 20  # seeds of the requests of one client


async def run_open(
    load: Load, rate: float, speak: Speak, lines: Iterator[str], warm_up_s: float = 0.0, client: int = 0
) -> tuple[list[Trace], float]:
    """Run an open loop with as many requests as `load`, `rate` per second; return traces, and seconds to the end.

    Args:
        warm_up_s: Seconds for which further requests arrive at the same rate before the measured ones.
        client: Number of the client, which determines its arrival times and the seeds of its requests.
    """
    traces: list[Trace] = []
    num_warm_ups = round(rate * warm_up_s)

    async def send(index: int, due_s: float) -> None:
        await asyncio.sleep(begun + due_s - time.perf_counter())
        trace = await speak(next(lines), load.options(seed=CLIENT_SEEDS * client + index))
        if index >= num_warm_ups:
            traces.append(trace)

    begun = time.perf_counter()
    times = arrivals(rate, num_warm_ups + load.concurrency * load.requests, client)
    await asyncio.gather(*(send(index, due_s) for index, due_s in enumerate(times)))
    return traces, time.perf_counter() - begun - times[num_warm_ups]


def through_triton(client: SpeechClient, **fixed: Any) -> Speak:
    """Return a function that requests speech from the ensemble over gRPC, with the options `fixed` added."""

    async def speak(text: str, options: dict[str, Any]) -> Trace:
        return await follow(Trace(sent=time.perf_counter()), client.speak(text, **fixed, **options))

    return speak


def check(traces: list[Trace]) -> None:
    """Raise RuntimeError if requests failed, because the other figures would be for a smaller load."""
    failed = [trace.error for trace in traces if trace.error]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(traces)} requests failed: {failed[0]}")


def ratio(numerators: list[float], denominators: list[float]) -> float:
    return round(median_ratio(numerators, denominators), 4)
