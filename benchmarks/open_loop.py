"""Requests that come by themselves: how soon they are heard at rates up to saturation and beyond, and where the knee is

    python -m benchmarks.open_loop                          # a server of its own: results/open_loop.jsonl
    python -m benchmarks.open_loop --shares 0.5 1 --arrivals bursts --seconds 30
    python -m benchmarks.open_loop --first-frame-target-s 1 --closed-loop-rate 3.7    # at the rates of another run

A closed loop tells how many requests a second the server ends (`--concurrency` streams); then requests come at shares
of that, at random times (Poisson), or in bursts of `--burst` at random times. They are of three lengths, two in three
with guidance, and one in six is to be written down. Whoever is refused for want of room is counted and not heard.
Goodput: requests by second whose first audible sample came within `--target-s` and whose player never waited longer
than 0.2 s. The knee is the highest rate up to which 95 % are heard in time and hardly any is refused. One line of JSON
for each rate.
"""

import argparse
import asyncio
import json
import random
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results_file import append_result
from benchmarks.speech_load import NOISE_RATE, arrivals, follow, noise, texts
from benchmarks.speech_metrics import Trace, summarise, underrun_s
from benchmarks.temporary_server import command_line, serving, stop_on_sigterm
from stretto_client import ClientError, SpeechClient

SHARES = (0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0)
WORDS = (4, 9, 14)  # of a text
HEARD_S = 3.0  # of what is to be written down
LISTENING = 1 / 6
UNDERRUN_S = 0.2
MAX_REFUSED = 0.01  # of the requests below the knee


class Mix:
    """Requests drawn at random, the same for the same seed."""

    def __init__(self, client: SpeechClient, seed: int):
        self._client, self._random, self._lines = client, random.Random(seed), texts()

    def draw(self) -> Callable[[], Awaitable[Trace | None]]:
        """The next request, not sent yet: awaited, it gives its trace, or None where nothing is to be heard."""
        draw = self._random
        options: dict[str, Any] = {"seed": draw.randrange(1 << 40)}
        if draw.random() < LISTENING:
            pcm = noise(HEARD_S, options["seed"])
            return lambda: self._listen(pcm, options)
        text = " ".join(next(self._lines).split()[: draw.choice(WORDS)])
        options["guidance_scale"] = draw.choice((1.0, 1.5, 3.0))
        return lambda: follow(Trace(sent=time.perf_counter()), self._client.speak(text, **options))

    async def _listen(self, pcm: np.ndarray, options: dict[str, Any]) -> None:
        """What listeners get is not measured: they only take the server's time."""
        try:
            async for _ in self._client.transcribe((pcm, NOISE_RATE), **options):
                pass
        except ClientError:
            return


def in_bursts(rate: float, number: int, burst: int, seed: int = 0) -> np.ndarray:
    """When `number` requests of which `rate` come in a second are sent, `burst` at a time [n]; bursts at random."""
    starts = arrivals(rate / burst, -(-number // burst), seed)
    return np.repeat(starts, burst)[:number]


async def closed(mix: Mix, concurrency: int, seconds: float) -> float:
    """Requests a second of so many closed loops."""
    ended, begun = 0, time.perf_counter()

    async def loop() -> None:
        nonlocal ended
        while not ended or time.perf_counter() - begun < seconds:
            await mix.draw()()
            ended += 1

    await asyncio.gather(*(loop() for _ in range(concurrency)))
    return ended / (time.perf_counter() - begun)


async def opened(mix: Mix, times: np.ndarray) -> tuple[list[Trace], float]:
    """The traces of those that speak, of requests sent at these seconds, and the wall time until all had ended."""
    begun = time.perf_counter()

    async def send(due_s: float) -> Trace | None:
        request = mix.draw()
        await asyncio.sleep(begun + due_s - time.perf_counter())
        return await request()

    traces = await asyncio.gather(*(send(due_s) for due_s in times))
    return [trace for trace in traces if trace is not None], time.perf_counter() - begun


def is_good(trace: Trace, target_s: float) -> bool:
    """Whether it was heard in time and without a gap."""
    if not trace.succeeded or trace.sound is None:
        return False
    return trace.arrivals[0] - trace.sent + trace.sound <= target_s and underrun_s(trace) <= UNDERRUN_S


def figures(traces: Sequence[Trace], times: np.ndarray, wall_s: float, target_s: float) -> dict[str, Any]:
    """Of one rate. success, and what is beside it, is of the requests that were let in."""
    let_in = [trace for trace in traces if not trace.is_refused]
    span_s = max(float(times[-1]), 1e-9)
    good = sum(is_good(trace, target_s) for trace in traces)
    return {
        "offered": len(traces),
        "refused": round(1 - len(let_in) / max(len(traces), 1), 4),
        "goodput": round(good / span_s, 3),
        "good_share": round(good / max(len(traces), 1), 4),
        "target_s": target_s,
        **summarise(let_in, wall_s),
    }


def knee(records: Sequence[Mapping[str, Any]]) -> float | None:
    """The highest rate such that at it, and at all that are lower, 95 % of the first sounds were in time and hardly any
    request was refused; None where there is none."""
    found = None
    for record in sorted(records, key=lambda each: each["rate"]):
        late = record.get("first_sound_p95", float("inf")) > record["target_s"]
        if late or record["refused"] > MAX_REFUSED:
            break
        found = record["rate"]
    return found


async def measure(server: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The records of all rates, the lowest first."""
    records = []
    async with SpeechClient(server) as client:
        mix = Mix(client, arguments.seed)
        await closed(mix, 4, 1.0)  # the first of all warm up
        full = arguments.closed_loop_rate or await closed(mix, arguments.concurrency, arguments.seconds)
        for share in sorted(arguments.shares):
            rate = share * full
            number = max(arguments.least, round(rate * arguments.seconds))
            burst = arguments.burst if arguments.arrivals == "bursts" else 1
            times = in_bursts(rate, number, burst, arguments.seed)
            traces, wall_s = await opened(mix, times)
            about = {"arrivals": arguments.arrivals, "burst": burst, "share": share, "rate": round(rate, 3)}
            about |= {"closed_loop_rate": round(full, 3), "concurrency": arguments.concurrency}
            records.append(about | figures(traces, times, wall_s, arguments.target_s))
            print(f"open_loop: {records[-1]}", flush=True)
    return [record | {"knee": knee(records)} for record in records]


def main(arguments: argparse.Namespace) -> None:
    """Start a server, ask, write the lines."""
    target_s = arguments.first_frame_target_s
    about = {"first_frame_target": f"{target_s:g} s" if target_s else "none"}
    with tempfile.TemporaryDirectory() as folder, serving(with_target(arguments, Path(folder))) as server:
        for record in asyncio.run(measure(server, arguments)):
            append_result(arguments.out, "open_loop", about | record)


def with_target(arguments: argparse.Namespace, folder: Path) -> Path:
    """The repository to serve; a copy in `folder` where it is given a target of first frames."""
    repository: Path = arguments.model_repository
    if arguments.first_frame_target_s is None:
        return repository
    copy = shutil.copytree(repository, folder / "repository")
    path = copy / "language_model" / "1" / "engine.json"
    record = json.loads(path.read_text()) | {"first_frame_target_s": arguments.first_frame_target_s}
    path.write_text(json.dumps(record))
    return copy


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, "open_loop")
    add = parser.add_argument
    add("--shares", type=float, nargs="+", default=SHARES, help="of what the closed loop ends in a second")
    add("--arrivals", choices=("poisson", "bursts"), default="poisson")
    add("--burst", type=int, default=8, help="requests of a burst")
    add("--concurrency", type=int, default=16, help="streams of the closed loop")
    add("--closed-loop-rate", type=float, help="what the closed loop told another run, which this one is held to")
    add("--first-frame-target-s", type=float, help="of `engine.json`: fewer are let in where first frames are later")
    add("--seconds", type=float, default=60.0, help="of the closed loop, and of each rate")
    add("--least", type=int, default=120, help="requests of a rate: with 100 that speak there is a p99")
    add("--target-s", type=float, default=1.5, help="in which the first sound is to be heard")
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


if __name__ == "__main__":
    stop_on_sigterm()
    main(parse())
