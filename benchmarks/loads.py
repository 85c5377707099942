"""Loads of speech requests, and metrics that their clients observe.

In a closed loop, a stream sends its next request when the last one has ended. In an open loop, requests are sent at
random times, whether or not earlier ones have ended. Texts do not repeat. Metrics are defined in benchmarks/README.md.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import median_ratio
from stretto_client import ClientError, ServerFull

if TYPE_CHECKING:  # a GPU host lacks sentencex, which splits long texts
    from stretto_client import Speech, SpeechClient

NOISE_RATE = 16_000  # Hz
SILENCE_DBFS = -50.0
SHORTEST_UNDERRUN_S = 0.001  # shorter waits are within a chunk's own transport


@dataclass(slots=True)
class Trace:
    """One request as its client sees it; all times are in seconds on one clock.

    Attributes:
        arrivals: Time of each response with samples.
        durations: Seconds of audio in each of these responses.
        sound: Seconds from the start of the audio to the first sample above -50 dBFS; None if all is silent.
        unguided_frames: Frames generated without guidance although the request asked for it.
        is_refused: True if the server was full and did not start the request.
    """

    sent: float
    arrivals: list[float] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    sound: float | None = None
    finished: float | None = None
    error: str | None = None
    unguided_frames: int = 0
    is_refused: bool = False

    @property
    def audio_s(self) -> float:
        return sum(self.durations)

    @property
    def first_s(self) -> float:
        """Seconds from the request to its first samples."""
        return self.arrivals[0] - self.sent

    @property
    def succeeded(self) -> bool:
        """True if the request ended without an error and its audio is not silent."""
        return self.error is None and self.finished is not None and self.sound is not None

    def add(self, now: float, pcm: np.ndarray, sample_rate: int) -> None:
        """Record a chunk of mono samples [n] that arrived at `now`."""
        if self.sound is None:
            loud = np.flatnonzero(np.abs(pcm) > 10 ** (SILENCE_DBFS / 20))
            if loud.size:
                self.sound = self.audio_s + loud[0] / sample_rate
        self.arrivals.append(now)
        self.durations.append(len(pcm) / sample_rate)


def underrun_s(trace: Trace) -> float:
    """Return how long a player that starts with the first chunk waits for a late chunk, at most, in seconds."""
    played = np.concatenate([[0.0], np.cumsum(trace.durations)[:-1]])
    return float(np.max(np.asarray(trace.arrivals) - trace.arrivals[0] - played, initial=0.0))


def percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return `name_p50`, `name_p95` and, if there are at least 100 values, `name_p99`."""
    points = (50, 95, 99) if len(values) >= 100 else (50, 95)
    return {f"{name}_p{p}": round(float(np.percentile(values, p)), 5) for p in points} if len(values) else {}


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
        lengths: Forced numbers of frames, from which the seed of a request draws one; empty for `frames`.
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
    """Return the times at which a Poisson process sends requests.

    Returns:
        Seconds after the first request [number].
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, number - 1)
    return np.concatenate([[0.0], np.cumsum(gaps)])


CLIENT_SEEDS = 1 << 20  # seeds of the requests of one client


async def run_open(
    load: Load, rate: float, speak: Speak, lines: Iterator[str], warm_up_s: float = 0.0, client: int = 0
) -> tuple[list[Trace], float]:
    """Run an open loop with the same number of requests as `load`, at `rate` per second.

    Args:
        warm_up_s: Seconds for which further requests arrive at the same rate before the measured ones.
        client: Number of the client, from which its arrival times and the seeds of its requests follow.

    Returns:
        Traces of the measured requests, and the seconds from the first of them to the end.
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


async def follow(trace: Trace, stream: "Speech") -> Trace:
    """Record the events of `stream` in `trace` until it ends; an error is recorded too."""
    try:
        async for event in stream:
            if event.pcm is not None and event.pcm.size:
                trace.add(time.perf_counter(), event.pcm, event.sample_rate)
            if event.report is not None and event.report["guidance_scale"] != 1.0:
                trace.unguided_frames = event.report["num_frames"] - event.report["guided_frames"]
    except ClientError as error:
        trace.error = str(error)
        trace.is_refused = isinstance(error, ServerFull)
    trace.finished = time.perf_counter()
    return trace


def through_triton(client: "SpeechClient", **fixed: Any) -> Speak:
    """Return a function that requests speech from the ensemble over gRPC, with the options `fixed` added."""

    async def speak(text: str, options: dict[str, Any]) -> Trace:
        return await follow(Trace(sent=time.perf_counter()), client.speak(text, **fixed, **options))

    return speak


def check(traces: list[Trace]) -> None:
    """Raise RuntimeError if requests failed, because the remaining figures would be for a smaller load."""
    failed = [trace.error for trace in traces if trace.error]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(traces)} requests failed: {failed[0]}")


def ratio(numerators: list[float], denominators: list[float]) -> float:
    """Return `median_ratio`, rounded to four decimal places."""
    return round(median_ratio(numerators, denominators), 4)
