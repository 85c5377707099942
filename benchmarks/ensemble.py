"""Seconds of speech per second: the ensemble under load, guided and unguided, and the engine alone.

    python -m benchmarks.ensemble --concurrency 1 4 8 16 --rounds 3

In a closed loop every stream sends its next request when the last one has ended; every text is new. For each
concurrency and round, three arms take turns, so that other load on the machine affects all alike: guided and unguided
requests through Triton, and guided requests to the engine alone, without Triton, codec and client. `cfg_retention` and
`triton_tax` compare arms at equal, forced frame counts. The latencies are those of a fourth arm, whose utterances end
by themselves. One line of JSON for each concurrency. The server must be running.

    python -m benchmarks.ensemble --family bagpiper-small --concurrency 1 4 8

A small version of a published family with random weights, served by its own server: `family.py`.
"""

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.checkpoints.small_models import SMALL_MODELS
from benchmarks.family import measure_family
from benchmarks.harness import CHECKPOINT, ENGINE_ARGS, append_result, command_line, stop_on_sigterm
from benchmarks.loads import Load, Speak, Trace, check, ratio, run, summarise, texts, through_triton
from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto_client import SpeechClient


def through_engine(engine: Any, preprocessor: Preprocessor, frame_rate: float) -> Speak:
    """Return a function that sends a text to the engine alone; its codes count as the audio that they encode."""

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
    """Run all arms at one concurrency and return the record."""
    lines = texts()
    scale = arguments.guidance
    arms = {
        "guided": (Load(concurrency, arguments.requests, arguments.frames, scale), server),
        "unguided": (Load(concurrency, arguments.requests, arguments.frames, 1.0), server),
        "engine": (Load(concurrency, arguments.requests, arguments.frames, scale), engine),
        "natural": (Load(concurrency, arguments.requests, None, scale), server),
    }
    for load, speak in arms.values():  # warm up every path, with its own texts
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
    """Measure each concurrency and write a line for each."""
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
    """Parse the command line."""
    parser = command_line(
        __doc__,
        "speech",
        server=("localhost:8001", "gRPC address of the running server, without --family"),
        concurrency=([1, 4, 8, 16], "streams at once"),
        requests=(4, "utterances of each stream in a run"),
        rounds=(3, "turns of each arm"),
        frames=(75, "frames of an utterance of forced length"),
        guidance=(float, "guidance scale of the guided arms; default: 1.5, or the family's own"),
        listeners=(int, "requests with audio input during the streams; default: as many as streams"),
        open_s=(20.0, "seconds of each open loop, which has at least 16 requests"),
    )
    parser.add_argument("--family", choices=SMALL_MODELS, help="small published family, with its own server")
    parser.add_argument(
        "--open-loop", type=float, nargs="+", default=[], metavar="SHARE", help="of the last closed loop's requests/s"
    )
    parser.set_defaults(out=None)
    arguments = parser.parse_args()
    name = "speech" if arguments.family is None else "families"
    arguments.out = arguments.out or Path(f"benchmarks/results/{name}.jsonl")
    if arguments.family is None and arguments.guidance is None:
        arguments.guidance = 1.5
    return arguments


if __name__ == "__main__":
    stop_on_sigterm()
    asyncio.run(main(parse()))
