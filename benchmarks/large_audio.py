"""What large files of one client cost everybody else: first audio of short texts, one after the other, in turns

    alone      with nothing beside them
    busy       beside a process that does nothing but keep a core busy, at the priority of the clients below
    prepared   beside a client that sends files of 19 MB in a loop, which are read and answered
    refused    beside a client that sends files of 19 MB in a loop, which are too long

    python -m benchmarks.large_audio --rounds 5

What `prepared` and `refused` take longer than `busy` is the server's; what `busy` takes longer than `alone` is the
machine's. The clients that send run in processes of their own, with less priority than the server: they stand for
other machines. One line of JSON.
"""

import argparse
import asyncio
import io
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from stretto_client import SpeechClient
from stretto_client.errors import ClientError

from benchmarks.results_file import ROOT, append_result
from benchmarks.temporary_server import serving

TEXT = "The birch canoe slid."
NICENESS = 10  # of what stands for other machines
START_S = 120.0
SHAPES = {"prepared": (9.0, 88_200, 8), "refused": (215.0, 44_100, 1)}  # seconds, Hz, channels


def large_file(kind: str) -> bytes:
    """A wav file of noise, of 19 MB."""
    seconds, rate, channels = SHAPES[kind]
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (int(seconds * rate), channels)).astype(np.float32)
    held = io.BytesIO()
    soundfile.write(held, samples, rate, format="WAV", subtype="PCM_24" if channels > 1 else "PCM_16")
    return held.getvalue()


def keep_busy(server: str, has_begun: Event) -> None:
    """Take a core's time for ever."""
    os.nice(NICENESS)
    has_begun.set()
    while True:
        pass


def keep_sending(server: str, kind: str, has_begun: Event) -> None:
    """Send a large file again and again, each when the last has been answered."""
    os.nice(NICENESS)

    async def send() -> None:
        data = large_file(kind)
        async with SpeechClient(server) as client:
            while True:
                try:
                    async for _ in client.transcribe(data, text={"max_rows": 10}):
                        pass
                except ClientError:
                    assert kind == "refused"
                has_begun.set()

    asyncio.run(send())


@contextmanager
def beside(target: Callable[..., None] | None, *arguments: Any) -> Iterator[SpawnProcess | None]:
    """A process that runs `target`, which has begun, or none."""
    if target is None:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    has_begun = context.Event()
    process = context.Process(target=target, args=(*arguments, has_begun), daemon=True)
    process.start()
    try:
        if not has_begun.wait(START_S):
            raise RuntimeError(f"{target.__name__} did not begin")
        yield process
    finally:
        process.kill()
        process.join()


async def first_audio_s(client: SpeechClient) -> float:
    """Seconds from a request to its first samples."""
    asked, heard = time.monotonic(), None
    async for event in client.speak(TEXT, seed=1, max_audio_s=0.8):
        if event.pcm is not None and heard is None:
            heard = time.monotonic()
    assert heard is not None
    return heard - asked


async def measure(server: str, requests: int) -> list[float]:
    """First audio of so many requests, one after the other."""
    async with SpeechClient(server) as client:
        return [await first_audio_s(client) for _ in range(requests)]


def main(arguments: argparse.Namespace) -> None:
    """Take turns, and write the line."""
    took: dict[str, list[float]] = {name: [] for name in ("alone", "busy", "prepared", "refused")}
    with serving(arguments.model_repository) as server:
        turns: dict[str, tuple[Any, ...]] = {"alone": (None,), "busy": (keep_busy, server)}
        turns |= {kind: (keep_sending, server, kind) for kind in SHAPES}
        asyncio.run(measure(server, arguments.requests))  # the first requests of all warm up
        for _ in range(arguments.rounds):
            for name, turn in turns.items():
                with beside(*turn):
                    took[name] += asyncio.run(measure(server, arguments.requests))
    append_result(arguments.out, "large_audio", describe(took, arguments))


def describe(took: dict[str, list[float]], arguments: argparse.Namespace) -> dict[str, Any]:
    """The record: medians and 95th percentiles in ms, and how much later than `alone` and `busy` the median is."""
    p50 = {name: 1000 * statistics.median(values) for name, values in took.items()}
    p95 = {name: 1000 * float(np.percentile(values, 95)) for name, values in took.items()}
    delays = {f"{name}_delay_ms": p50[name] - p50["alone"] for name in ("busy", *SHAPES)}
    delays |= {f"{name}_over_busy_ms": p50[name] - p50["busy"] for name in SHAPES}
    record = {f"first_audio_p50_ms_{name}": value for name, value in p50.items()}
    record |= {f"first_audio_p95_ms_{name}": value for name, value in p95.items()} | delays
    record = {name: round(value, 1) for name, value in record.items()}
    return {"rounds": arguments.rounds, "requests_per_turn": arguments.requests, **record}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="times that each turn is taken")
    parser.add_argument("--requests", type=int, default=20, help="texts of a turn")
    parser.add_argument("--model-repository", type=Path, default=ROOT / "model_repository")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/large_audio.jsonl"))
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
