"""Measure the time to the first sound in an open loop, at request rates up to and beyond saturation.

    python -m benchmarks.open_loop                          # starts a server; results/open_loop.jsonl
    python -m benchmarks.open_loop --shares 0.5 1 --seconds 30
    python -m benchmarks.open_loop --model-repository DIR --closed-loop-rate 3.7    # at the rates of another run

First, a closed loop of `--concurrency` streams measures how many requests per second the server completes. Then
requests are sent at shares of that rate, at random times (Poisson). They have three lengths. Two in three are guided,
and one in six is a transcription. Requests that are refused because the server is full are counted separately. Goodput
is the number of requests per second whose first audible sample arrives within `--target-s` and whose player never waits
longer than 0.2 s. The knee is the highest rate up to which 95 % of the requests are in time and at most 1 % are
refused. The benchmark writes one line of JSON for each rate.
"""

import argparse
import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.harness import append_result, command_line, serving, stop_on_sigterm
from benchmarks.loads import NOISE_RATE, arrivals, noise, summarise
from lab.texts import texts
from stretto_client import ClientError, SpeechClient
from stretto_client.capacity.traces import Trace, follow, underrun_s

SHARES = (0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0)
WORDS = (4, 9, 14)  # numbers of words in a text
INPUT_S = 3.0  # duration of a recording to transcribe
TRANSCRIPTIONS = 1 / 6  # share of requests that are transcriptions
UNDERRUN_S = 0.2
MAX_REFUSED = 0.01  # of the requests below the knee


class Mix:
    """Random mix of requests; equal seeds give equal requests."""

    def __init__(self, client: SpeechClient, seed: int):
        self._client = client
        self._random = random.Random(seed)
        self._lines = texts()

    def draw(self) -> Callable[[], Awaitable[Trace | None]]:
        """Return a function that sends the next request; it returns the trace, or None for a transcription."""
        draw = self._random
        options: dict[str, Any] = {"seed": draw.randrange(1 << 40)}
        if draw.random() < TRANSCRIPTIONS:
            pcm = noise(INPUT_S, options["seed"])
            return lambda: self._listen(pcm, options)
        text = " ".join(next(self._lines).split()[: draw.choice(WORDS)])
        options["guidance_scale"] = draw.choice((1.0, 1.5, 3.0))
        return lambda: follow(Trace(sent=time.perf_counter()), self._client.speak(text, **options))

    async def _listen(self, pcm: np.ndarray, options: dict[str, Any]) -> None:
        """Send a transcription, which only loads the server and is not measured."""
        try:
            async for _ in self._client.transcribe((pcm, NOISE_RATE), **options):
                pass
        except ClientError:
            return


async def closed(mix: Mix, concurrency: int, seconds: float) -> float:
    """Run `concurrency` closed loops and return how many requests per second they complete."""
    ended = 0
    begun = time.perf_counter()

    async def loop() -> None:
        nonlocal ended
        while not ended or time.perf_counter() - begun < seconds:
            await mix.draw()()
            ended += 1

    await asyncio.gather(*(loop() for _ in range(concurrency)))
    return ended / (time.perf_counter() - begun)


async def opened(mix: Mix, times: np.ndarray) -> tuple[list[Trace], float]:
    """Send requests at the given times in seconds; return the traces of speech and the wall time."""
    begun = time.perf_counter()

    async def send(due_s: float) -> Trace | None:
        request = mix.draw()
        await asyncio.sleep(begun + due_s - time.perf_counter())
        return await request()

    traces = await asyncio.gather(*(send(due_s) for due_s in times))
    return [trace for trace in traces if trace is not None], time.perf_counter() - begun


def is_good(trace: Trace, target_s: float) -> bool:
    """Return True if the first sound was in time and the player never waited long."""
    if not trace.succeeded or trace.sound is None:
        return False
    return trace.first_s + trace.sound <= target_s and underrun_s(trace) <= UNDERRUN_S


def figures(traces: Sequence[Trace], times: np.ndarray, wall_s: float, target_s: float) -> dict[str, Any]:
    """Return the figures for one rate. Figures from `summarise` cover admitted requests only."""
    admitted = [trace for trace in traces if not trace.is_refused]
    span_s = max(float(times[-1]), 1e-9)
    good = sum(is_good(trace, target_s) for trace in traces)
    return {
        "offered": len(traces),
        "refused": round(1 - len(admitted) / max(len(traces), 1), 4),
        "goodput": round(good / span_s, 3),
        "good_share": round(good / max(len(traces), 1), 4),
        "target_s": target_s,
        **summarise(admitted, wall_s),
    }


def knee(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the highest rate up to which 95 % of first sounds are in time and at most 1 % of requests are refused.

    Returns:
        Requests per second, or None if even the lowest rate fails.
    """
    rate = None
    for record in sorted(records, key=lambda line: line["rate"]):
        late = record.get("first_sound_p95", float("inf")) > record["target_s"]
        if late or record["refused"] > MAX_REFUSED:
            break
        rate = record["rate"]
    return rate


async def measure(server: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure all rates and return their records, lowest rate first."""
    records = []
    async with SpeechClient(server) as client:
        mix = Mix(client, arguments.seed)
        await closed(mix, 4, 1.0)  # warms up
        full = arguments.closed_loop_rate or await closed(mix, arguments.concurrency, arguments.seconds)
        for share in sorted(arguments.shares):
            rate = share * full
            number = max(arguments.least, round(rate * arguments.seconds))
            times = arrivals(rate, number, arguments.seed)
            traces, wall_s = await opened(mix, times)
            about = {"share": share, "rate": round(rate, 3), "closed_loop_rate": round(full, 3)}
            about |= {"concurrency": arguments.concurrency}
            records.append(about | figures(traces, times, wall_s, arguments.target_s))
            print(f"open_loop: {records[-1]}", flush=True)
    return [record | {"knee": knee(records)} for record in records]


def main(arguments: argparse.Namespace) -> None:
    with serving(arguments.model_repository) as server:
        for record in asyncio.run(measure(server, arguments)):
            append_result(arguments.out, "open_loop", record)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    return command_line(
        __doc__,
        "open_loop",
        serves=True,
        shares=([*SHARES], "shares of the closed loop's requests per second"),
        concurrency=(16, "number of streams in the closed loop"),
        closed_loop_rate=(float, "requests per second of another run's closed loop, to use the same rates"),
        seconds=(60.0, "duration of the closed loop and of each open loop"),
        least=(120, "minimum number of requests per rate; a p99 needs 100 requests for speech"),
        target_s=(1.5, "latest time of a first sound that counts as good"),
        seed=(0, "seed of the requests"),
    ).parse_args(argv)


if __name__ == "__main__":
    stop_on_sigterm()
    main(parse())
