"""Streams per second of speech: the whole ensemble under load, with and without guidance, and the engine by itself.

    python -m benchmarks.ensemble --concurrency 1 4 8 16 --rounds 3

Closed loop: every stream sends its next request when the last one has ended; every text is new. Per concurrency and
round, three arms take turns, so that a noisy machine disturbs all alike: guided and unguided through Triton, and the
engine alone without Triton, codec and client (guided). `cfg_retention` and `triton_tax` compare arms at equal, forced
frame counts; the latencies come from a fourth arm that lets every utterance end by itself. One JSON line per
concurrency goes to `--out`, and to standard output. The server must be running.

    python -m benchmarks.ensemble --family bagpiper-small --concurrency 1 4 8

A published family in small, random weights, through a server of its own: `family.py`.
"""

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.checkpoints.bundled import CHECKPOINT, ENGINE_ARGS
from benchmarks.checkpoints.small_models import SMALL_MODELS
from benchmarks.family import measure_family
from benchmarks.results_file import append_result
from benchmarks.speech_load import Load, Speak, check, follow, ratio, run, texts
from benchmarks.speech_metrics import Trace, summarise
from benchmarks.temporary_server import stop_on_sigterm
from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto_client import SpeechClient


def through_triton(client: SpeechClient) -> Speak:
    """The way of a user: over gRPC through the ensemble."""

    async def speak(text: str, options: dict[str, Any]) -> Trace:
        return await follow(Trace(sent=time.perf_counter()), client.speak(text, **options))

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
            check(traces)
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
    if arguments.family is not None:
        async for benchmark, record in measure_family(arguments):
            append_result(arguments.out, benchmark, record)
        return
    prepare_environment()
    from stretto.engine.llm import SpeechLLM  # vllm reads the environment when it is imported

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
    add = parser.add_argument
    add("--family", choices=SMALL_MODELS, help="a published family in small, through a server started for it")
    add("--server", default="localhost:8001", help="gRPC address of the running server, without --family")
    add("--concurrency", type=int, nargs="+", default=[1, 4, 8, 16])
    add("--requests", type=int, default=4, help="utterances of each stream in a run")
    add("--rounds", type=int, default=3, help="times that the arms take turns")
    add("--frames", type=int, default=75, help="frames of an utterance where they are forced")
    add("--guidance", type=float, help="guidance scale of the guided arms; by default 1.5, or the family's own")
    add("--listeners", type=int, help="requests to understand audio beside the streams; by default as many as streams")
    add("--open-loop", type=float, nargs="+", default=[], metavar="SHARE", help="of the last closed loop's requests/s")
    add("--open-s", type=float, default=20.0, help="seconds of each open loop, at least 16 requests")
    add("--out", type=Path, help="by default speech.jsonl or families.jsonl in benchmarks/results")
    arguments = parser.parse_args()
    name = "speech" if arguments.family is None else "families"
    arguments.out = arguments.out or Path(f"benchmarks/results/{name}.jsonl")
    if arguments.family is None and arguments.guidance is None:
        arguments.guidance = 1.5
    return arguments


if __name__ == "__main__":
    stop_on_sigterm()
    asyncio.run(main(parse()))
