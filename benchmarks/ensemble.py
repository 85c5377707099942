"""Measure seconds of speech per second of the ensemble under load, guided and unguided, and of the bare engine.

    python -m benchmarks.ensemble --concurrency 1 4 8 16 --rounds 3

In a closed loop, every stream sends its next request as soon as the last one has ended. Every text is new. For each
concurrency and round, three arms take turns, so that other load on the machine affects all of them alike: guided
requests through Triton, unguided requests through Triton, and guided requests to the bare engine, which involve neither
Triton nor codec nor client. `cfg_retention` and `triton_tax` compare arms with equal, forced frame counts. The
latencies come from a fourth arm, whose utterances end by themselves. For the first two arms, the benchmark counts the
processor time (user and system) of every server process and of this process, which is the client. `rim` is the sum for
the proxy, Triton's own process, the language model's stub and the client. The benchmark writes one line of JSON for
each concurrency.

    python -m benchmarks.ensemble --family bagpiper-small --concurrency 1 4 8

This form serves a small, randomly initialised version of a published family (`small_models.py`). Replies have forced
numbers of text rows and frames. The arm `speaking` takes turns with `unguided`, if the family supports guidance.
Processor time is counted for `speaking`. With `--open-loop`, requests then arrive at random times, at shares of the
rate that the last closed loop reached.
"""

import argparse
import asyncio
import json
import math
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    CHECKPOINT,
    ENGINE_ARGS,
    append_result,
    command_line,
    cpu_s,
    served_processes,
    serving,
    stop_on_sigterm,
)
from benchmarks.loads import (
    Load,
    Speak,
    check,
    ratio,
    run,
    run_open,
    summarise,
    through_triton,
)
from lab.releases.small_models import SMALL_MODELS, SmallModel, write_checkpoint
from lab.texts import texts
from stretto.config import EngineConfig
from stretto.convert.make_repository import make
from stretto.engine.environment import prepare_environment
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto_client import SpeechClient
from stretto_client.capacity.traces import Trace, follow
from stretto_client.speech_stream import options_json, strings

MAX_ROWS = 64  # per engine step
TEXT_ROWS = 8  # before the audio
LEAST_REQUESTS = 16  # least number of requests in an open loop
# names of two processes
ENGINE = "engine"
CLIENT = "client"
RIM = ("proxy", "tritonserver", "language_model", CLIENT)

Run = tuple[list[Trace], float]
Count = Callable[[], dict[str, float]]


def through_engine(engine: Any, preprocessor: Preprocessor, frame_rate: float) -> Speak:
    """Return a function that sends a text directly to the engine. Codes count as the audio that they encode."""

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


async def measure(
    concurrency: int, arguments: argparse.Namespace, server: Speak, engine: Speak, count: Count = dict
) -> dict[str, Any]:
    """Run all arms at one concurrency; return the record. `count` returns processor seconds so far, by process."""
    lines = texts()
    scale = arguments.guidance
    arms = {
        "guided": (Load(concurrency, arguments.requests, arguments.frames, scale), server),
        "unguided": (Load(concurrency, arguments.requests, arguments.frames, 1.0), server),
        "engine": (Load(concurrency, arguments.requests, arguments.frames, scale), engine),
        "natural": (Load(concurrency, arguments.requests, None, scale), server),
    }
    for load, speak in arms.values():  # warms up every path with texts of its own
        await run(Load(min(concurrency, 4), 1, load.frames, load.guidance_scale), speak, lines)
    throughput: dict[str, list[float]] = {name: [] for name in arms}
    used: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    natural: list[Trace] = []
    natural_wall_s = 0.0
    for _ in range(arguments.rounds):
        for name, (load, speak) in arms.items():
            before = count()
            traces, wall_s = await run(load, speak, lines)
            after = count()
            audio_s = sum(trace.audio_s for trace in traces)
            check(traces)
            throughput[name].append(audio_s / wall_s)
            used[name].append({process: 1e3 * (after[process] - before[process]) / audio_s for process in after})
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
        **{f"cpu_ms_per_audio_s_{name}": costs(used[name]) for name in ("guided", "unguided") if all(used[name])},
        **summarise(natural, natural_wall_s),
    }


def costs(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Return the median processor seconds over the rounds for each process, for the `rim`, and in total."""
    parts = [seconds | {"rim": sum(map(seconds.__getitem__, RIM)), "all": sum(seconds.values())} for seconds in rounds]
    return {name: round(statistics.median(seconds[name] for seconds in parts), 2) for name in parts[0]}


def speech_inputs(model: SmallModel) -> Callable[[str, dict[str, Any]], list[Any]]:
    """Return a function from a user's turn and options to the inputs of a speech request."""

    def inputs(text: str, options: dict[str, Any]) -> list[Any]:
        messages = json.dumps([{"role": "user", "text": text}])
        return strings(messages=messages, task=model.speak, options=options_json({**model.options, **options}))

    return inputs


def speaker(client: SpeechClient, model: SmallModel) -> Speak:
    """Return a function that sends one user turn and receives speech."""
    inputs = speech_inputs(model)

    async def speak(text: str, options: dict[str, Any]) -> Trace:
        return await follow(Trace(sent=time.perf_counter()), client.send(inputs(text, options)))

    return speak


class FamilyLoad:
    """Runner of the arms of a family. `count` returns processor seconds so far, by process."""

    def __init__(self, model: SmallModel, speak: Speak, arguments: argparse.Namespace, count: Count = dict):
        self._model = model
        self._speak = speak
        self._count = count
        self._arguments = arguments
        self._lines = texts()
        self._scale = arguments.guidance or model.guidance_scale if model.guidance_scale is not None else None

    async def measure(self, concurrency: int) -> dict[str, Any]:
        """Run all arms at one concurrency and return the record."""
        rounds: defaultdict[str, list[Run]] = defaultdict(list)
        used: list[dict[str, float]] = []
        for _ in range(self._arguments.rounds + 1):  # the first round warms up
            before = self._count()
            rounds["speaking"].append(await self._run(concurrency, self._scale))
            used.append({name: seconds - before[name] for name, seconds in self._count().items()})
            if self._scale is not None:
                rounds["unguided"].append(await self._run(concurrency, 1.0))
        return self._record(concurrency, {arm: runs[1:] for arm, runs in rounds.items()}, used[1:])

    async def measure_open(self, share: float, full_rate: float) -> dict[str, Any]:
        """Run an open loop of `--open-s` seconds at `share` of `full_rate` and return the record."""
        rate = share * full_rate
        load = self._load(1, max(LEAST_REQUESTS, math.ceil(rate * self._arguments.open_s)), self._scale)
        traces, wall_s = await run_open(load, rate, self._speak, self._lines)
        check(traces)
        about = {"family": self._arguments.family, "frames": self._arguments.frames, "share": share}
        return about | {"rate": round(rate, 3)} | summarise(traces, wall_s)

    def _load(self, concurrency: int, requests: int, scale: float | None) -> Load:
        text_rows = TEXT_ROWS if self._model.has_text else None
        return Load(concurrency, requests, self._arguments.frames, scale, text_rows)

    async def _run(self, concurrency: int, scale: float | None) -> Run:
        load = self._load(concurrency, self._arguments.requests, scale)
        traces, wall_s = await run(load, self._speak, self._lines)
        check(traces)
        return traces, wall_s

    def _record(self, concurrency: int, rounds: dict[str, list[Run]], used: list[dict[str, float]]) -> dict[str, Any]:
        speaking = rounds["speaking"]
        record: dict[str, Any] = {
            "family": self._arguments.family,
            "concurrency": concurrency,
            "frames": self._arguments.frames,
            "text_rows": TEXT_ROWS if self._model.has_text else 0,
            "guidance_scale": self._scale,
        }
        if "unguided" in rounds:
            record["cfg_retention"] = ratio(*(list(map(throughput, rounds[arm])) for arm in ("speaking", "unguided")))
            record["unguided_total"] = sum(trace.unguided_frames for traces, _ in speaking for trace in traces)
        record |= cpu_figures(used, concurrency * self._arguments.requests * self._arguments.frames)
        return record | summarise([trace for run in speaking for trace in run[0]], sum(run[1] for run in speaking))


def cpu_figures(used: list[dict[str, float]], num_frames: int) -> dict[str, Any]:
    """Return medians over rounds of `num_frames` frames, given each round's processor seconds by process."""

    def per_s(seconds: Callable[[dict[str, float]], float]) -> float:
        return round(
            statistics.median(num_frames / max(seconds(seconds_by_process), 1e-9) for seconds_by_process in used), 1
        )

    if not all(used):
        return {}
    parts = {
        name: statistics.median(1e3 * seconds_by_process[name] / num_frames for seconds_by_process in used)
        for name in used[0]
    }
    return {
        "frames_per_cpu_s": per_s(lambda seconds_by_process: sum(seconds_by_process.values())),
        "frames_per_engine_cpu_s": per_s(lambda seconds_by_process: seconds_by_process[ENGINE]),
        "cpu_ms_per_frame": {name: round(ms, 3) for name, ms in parts.items()},
    }


def throughput(run: Run) -> float:
    """Return seconds of audio per second of wall time."""
    return sum(trace.audio_s for trace in run[0]) / run[1]


async def measure_family(arguments: argparse.Namespace) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Serve a small model; yield the benchmark's name and record for each closed loop, then each open loop."""
    model = SMALL_MODELS[arguments.family]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(model.family, Path(folder) / "checkpoint")
        make(checkpoint, Path(folder) / "repository", {"max_num_seqs": MAX_ROWS})
        with serving(Path(folder) / "repository") as address:
            async with SpeechClient(address) as client:
                pids = served_processes() | {CLIENT: os.getpid()}
                load = FamilyLoad(model, speaker(client, model), arguments, lambda: cpu_s(pids))
                full_rate = 0.0
                for concurrency in arguments.concurrency:
                    record = await load.measure(concurrency)
                    full_rate = record["requests_per_s"]
                    yield "families", record
                for share in arguments.open_loop:
                    yield "families_open", await load.measure_open(share, full_rate)


async def main(arguments: argparse.Namespace) -> None:
    if arguments.family is not None:
        async for benchmark, record in measure_family(arguments):
            append_result(arguments.out, benchmark, record)
        return
    with serving(arguments.model_repository) as server:
        await _measure_bundled(server, arguments)


async def _measure_bundled(server: str, arguments: argparse.Namespace) -> None:
    prepare_environment()
    from stretto.engine.llm import SpeechLLM  # vllm reads the environment when it is imported

    pids = served_processes() | {CLIENT: os.getpid()}  # without the engine in this process
    preprocessor = Preprocessor(CHECKPOINT)
    engine = await SpeechLLM.start(EngineConfig.from_file(ENGINE_ARGS, CHECKPOINT))
    try:
        async with SpeechClient(server) as client:
            alone = through_engine(engine, preprocessor, preprocessor.codec.spec.frame_rate)
            for concurrency in arguments.concurrency:
                through = through_triton(client)
                record = await measure(concurrency, arguments, through, alone, lambda: cpu_s(pids))
                append_result(arguments.out, "speech", record)
    finally:
        engine.shutdown()


def parse() -> argparse.Namespace:
    parser = command_line(
        __doc__,
        "speech",
        serves=True,
        concurrency=([1, 4, 8, 16], "numbers of simultaneous streams"),
        requests=(4, "utterances per stream in each run"),
        rounds=(3, "number of turns for each arm"),
        frames=(75, "frames per utterance in arms with forced lengths"),
        guidance=(float, "guidance scale of the guided arms; default: 1.5, or the default of the family"),
        open_s=(20.0, "seconds per open loop; those at shares of a rate have at least 16 requests"),
    )
    parser.add_argument(
        "--family", choices=SMALL_MODELS, help="small version of a published family to measure on its own server"
    )
    parser.add_argument(
        "--open-loop",
        type=float,
        nargs="+",
        default=[],
        metavar="SHARE",
        help="request rates of open loops, as shares of the last closed loop's rate",
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
