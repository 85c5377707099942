"""Streams per second of speech: the whole ensemble under load, with and without guidance, and the engine by itself.

    python -m scripts.benchmark --concurrency 1 4 8 16 --rounds 3

Closed loop: every stream sends its next request when the last one has ended; every text is new. Per concurrency and
round, three arms take turns, so that a noisy machine disturbs all alike: guided and unguided through Triton, and the
engine alone without Triton, codec and client (guided). `cfg_retention` and `triton_tax` compare arms at equal, forced
frame counts; the latencies come from a fourth arm that lets every utterance end by itself. One JSON line per
concurrency goes to `--out`, and to standard output. The server must be running.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client import ClientError, SpeechClient
from python_backend.config import EngineConfig
from python_backend.engine.environment import prepare_environment
from python_backend.preprocessing.request import Preprocessor, RawRequest
from scripts.bundled import CHECKPOINT, ENGINE_ARGS
from scripts.results import append_result
from scripts.speech_metrics import Trace, summarise

CITIES = ("Oslo", "Rome", "Boston", "Paris", "Tokyo", "Vienna", "Dublin", "Denver")
ANIMALS = ("dog", "horse", "rabbit", "tiger", "mouse", "monkey", "bird")


@dataclass(frozen=True, slots=True)
class Load:
    """`concurrency` streams of `requests` utterances each, of exactly `frames` frames or, with None, as they come."""

    concurrency: int
    requests: int
    frames: int | None
    guidance_scale: float

    def options(self, seed: int) -> dict[str, Any]:
        """The request's options."""
        options: dict[str, Any] = {"guidance_scale": self.guidance_scale, "seed": seed}
        if self.frames is not None:
            options["audio"] = {"min_rows": self.frames, "max_rows": self.frames}
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


def through_triton(client: SpeechClient) -> Speak:
    """The way of a user: over gRPC through the ensemble."""

    async def speak(text: str, options: dict[str, Any]) -> Trace:
        trace = Trace(sent=time.perf_counter())
        try:
            async for event in client.speak(text, **options):
                if event.pcm is not None and event.pcm.size:
                    trace.add(time.perf_counter(), event.pcm, event.sample_rate)
        except ClientError as error:
            trace.error = str(error)
        trace.finished = time.perf_counter()
        return trace

    return speak


def through_engine(engine: Any, preprocessor: Preprocessor, frame_rate: float) -> Speak:
    """The engine alone: its codes count as the audio they stand for."""

    async def speak(text: str, options: dict[str, Any]) -> Trace:
        trace = Trace(sent=time.perf_counter(), sound=0.0)
        prompt = preprocessor.prepare(RawRequest(text=text, task="tts", options=json.dumps(options)))
        async for item in engine.generate(prompt):
            if item.codes is not None and item.codes.size:
                trace.arrivals.append(time.perf_counter())
                trace.durations.append(item.codes.shape[1] / frame_rate)
        trace.finished = time.perf_counter()
        return trace

    return speak


def ratio(numerators: list[float], denominators: list[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return round(statistics.median(a / b for a, b in zip(numerators, denominators, strict=True)), 4)


async def measure(concurrency: int, arguments: argparse.Namespace, server: Speak, engine: Speak) -> dict[str, Any]:
    """All arms at one concurrency; the record of its figures."""
    lines = texts()
    scale = arguments.guidance
    arms = {
        "guided": (Load(concurrency, arguments.requests, arguments.frames, scale), server),
        "unguided": (Load(concurrency, arguments.requests, arguments.frames, 1.0), server),
        "engine": (Load(concurrency, arguments.requests, arguments.frames, scale), engine),
        "natural": (Load(concurrency, arguments.requests, None, scale), server),
    }
    for load, speak in arms.values():  # warm every path up, with texts of its own
        await run(Load(min(concurrency, 4), 1, load.frames, load.guidance_scale), speak, lines)
    throughput: dict[str, list[float]] = {name: [] for name in arms}
    natural: list[Trace] = []
    natural_wall_s = 0.0
    for _ in range(arguments.rounds):
        for name, (load, speak) in arms.items():
            traces, wall_s = await run(load, speak, lines)
            failed = [trace.error for trace in traces if trace.error]
            if failed:
                raise RuntimeError(f"{len(failed)} of {len(traces)} requests failed: {failed[0]}")
            throughput[name].append(sum(trace.audio_s for trace in traces) / wall_s)
            if name == "natural":
                natural += traces
                natural_wall_s += wall_s
    return {
        "concurrency": concurrency,
        "frames": arguments.frames,
        "guidance_scale": scale,
        "cfg_retention": ratio(throughput["guided"], throughput["unguided"]),
        "triton_tax": round(1 - ratio(throughput["guided"], throughput["engine"]), 4),
        **{f"audio_throughput_{name}": round(statistics.median(values), 3) for name, values in throughput.items()},
        **summarise(natural, natural_wall_s),
    }


async def main(arguments: argparse.Namespace) -> None:
    """Measure every concurrency, a line each."""
    prepare_environment()
    from python_backend.engine.llm import SpeechLLM  # vllm reads the environment when it is imported

    preprocessor = Preprocessor(CHECKPOINT)
    engine = await SpeechLLM.start(EngineConfig.from_file(ENGINE_ARGS, CHECKPOINT))
    try:
        async with SpeechClient(arguments.server) as client:
            alone = through_engine(engine, preprocessor, preprocessor.codec.spec.frame_rate)
            for concurrency in arguments.concurrency:
                record = await measure(concurrency, arguments, through_triton(client), alone)
                append_result(arguments.out, "speech", record)
    finally:
        engine.shutdown()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="localhost:8001", help="gRPC address of the running server")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--requests", type=int, default=4, help="utterances of each stream in a run")
    parser.add_argument("--rounds", type=int, default=3, help="times that the arms take turns")
    parser.add_argument("--frames", type=int, default=75, help="frames of an utterance where they are forced")
    parser.add_argument("--guidance", type=float, default=1.5, help="guidance scale of the guided arms")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speech.jsonl"))
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(parse()))
