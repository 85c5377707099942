"""A small version of a published family under load: speech alone, without guidance, and during audio input.

Part of `benchmarks.ensemble` (`--family`). A random checkpoint is written and converted (`small_models.py`); a server
is started for it and stopped afterwards. The frames of replies, and the rows of text before them, are forced. The arms
take turns: `speaking`; `unguided`, if the family supports guidance; and `mixed`, if it understands audio, in which as
many closed loops of requests with audio input run during the streams. For `speaking` the processor time of every
process of the server, and of this one, is counted. With `--open-loop` requests then arrive at random times, at shares
of the rate that the last closed loop reached. For a family with a depth transformer the cost of the parts of a frame is
measured last, in this process (`frame_parts.py`). A family that is not served has only this measurement.
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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.checkpoints.small_models import SMALL_MODELS, SmallModel, write_checkpoint
from benchmarks.harness import cpu_s, served_processes, serving
from benchmarks.loads import Load, Speak, Trace, check, follow, percentiles, ratio, run, run_open, summarise, texts
from stretto.convert.make_repository import make
from stretto.families.opuslm.family import NUM_STREAMS, OpusVocabulary
from stretto.families.registry import family_at
from stretto_client import SpeechClient
from stretto_client.speech_stream import audio_inputs, options_json, strings

MAX_ROWS = 64  # of a step
TEXT_ROWS = 8  # before the audio
INPUT_S, INPUT_RATE, FRAME_RATE = 5, 16_000, 50
LEAST_REQUESTS = 16  # of an open loop
ENGINE, CLIENT = "engine", "client"  # two of the processes
ANSWER = {"text": {"min_rows": 32, "max_rows": 32}}
QUESTION = "what do you hear?"

Listen = Callable[
    [int], Awaitable[float]
]  # sends the request of a seed; returns the seconds until its answer was complete
Run = tuple[list[Trace], float]
Count = Callable[[], dict[str, float]]


def speaker(client: SpeechClient, model: SmallModel) -> Speak:
    """Return a function that sends one user turn, which is answered by speech."""

    async def speak(text: str, options: dict[str, Any]) -> Trace:
        messages = json.dumps([{"role": "user", "text": text}])
        inputs = strings(messages=messages, task=model.speak, options=options_json({**model.options, **options}))
        return await follow(Trace(sent=time.perf_counter()), client.send(inputs))

    return speak


def listener(client: SpeechClient, model: SmallModel) -> Listen:
    """Return a function that sends five seconds of audio: samples and a question to Bagpiper, codes to OpusLM."""
    task = model.listen
    assert task is not None

    async def listen(seed: int) -> float:
        random = np.random.default_rng(seed)
        turn: dict[str, Any] = {"role": "user"}
        if task == "understand":
            pcm = 0.1 * random.standard_normal(INPUT_S * INPUT_RATE).astype(np.float32)
            inputs, turn = audio_inputs((pcm, INPUT_RATE)), turn | {"audio": "pcm_in", "text": QUESTION}
        else:
            inputs, turn = [], turn | {"codes": input_codes(random)}
        begun = time.perf_counter()
        options = options_json(ANSWER | {"seed": seed})
        inputs += strings(messages=json.dumps([turn]), task=task, options=options)
        async for _ in client.send(inputs):
            pass
        return time.perf_counter() - begun

    return listen


def input_codes(random: np.random.Generator) -> list[list[int]]:
    """Return random codes of OpusLM's nine streams, semantic tokens first."""
    vocabulary = OpusVocabulary()
    sizes = [vocabulary.ssl[1] - vocabulary.ssl[0], *[vocabulary.codebook_size] * (NUM_STREAMS - 1)]
    return [random.integers(0, size, INPUT_S * FRAME_RATE).tolist() for size in sizes]


async def beside(
    listen: Listen, number: int, seeds: Iterator[int], speaking: Awaitable[Any]
) -> tuple[Any, list[float]]:
    """Await `speaking` while `number` closed loops of `listen` run; return its result and the seconds of each answer.

    Raises:
        ClientError: A request with audio input was refused or failed.
    """
    is_over, answers = asyncio.Event(), list[float]()

    async def loop() -> None:
        while not is_over.is_set():
            answers.append(await listen(next(seeds)))

    loops = [asyncio.create_task(loop()) for _ in range(number)]
    try:
        spoken = await speaking
    finally:
        is_over.set()
        failed = [error for error in await asyncio.gather(*loops, return_exceptions=True) if error]
    for error in failed:
        assert isinstance(error, BaseException)
        raise error
    return spoken, answers


class FamilyLoad:
    """The arms at one concurrency.

    Args:
        model: Model to measure.
        speak: Sends a request for speech.
        listen: Sends a request with audio input; None if the model does not understand audio.
        arguments: Command line.
        count: Returns the seconds of processor time so far by process.
    """

    def __init__(
        self, model: SmallModel, speak: Speak, listen: Listen | None, arguments: argparse.Namespace, count: Count = dict
    ):
        self._model, self._speak, self._listen, self._count = model, speak, listen, count
        self._arguments, self._lines, self._seeds = arguments, texts(), iter(range(1, 1 << 30))
        self._scale = arguments.guidance or model.guidance_scale if model.guidance_scale is not None else None

    async def measure(self, concurrency: int) -> dict[str, Any]:
        """Return the record of one concurrency."""
        listeners = concurrency if self._arguments.listeners is None else self._arguments.listeners
        rounds: defaultdict[str, list[Run]] = defaultdict(list)
        answers: list[float] = []
        used: list[dict[str, float]] = []
        for number in range(self._arguments.rounds + 1):  # the first round warms up
            before = self._count()
            rounds["speaking"].append(await self._run(concurrency, self._scale))
            used.append({name: seconds - before[name] for name, seconds in self._count().items()})
            if self._scale is not None:
                rounds["unguided"].append(await self._run(concurrency, 1.0))
            if self._listen is not None:
                mixed, seconds = await beside(self._listen, listeners, self._seeds, self._run(concurrency, self._scale))
                rounds["mixed"].append(mixed)
                answers += seconds if number else []
        record = self._record(concurrency, {arm: runs[1:] for arm, runs in rounds.items()}, used[1:])
        if self._listen is not None:
            record["mixed"] = {"listeners": listeners, "answers": len(answers), **percentiles("answer_s", answers)}
            record["mixed"] |= mixed_figures(rounds["mixed"][1:], rounds["speaking"][1:])
        return record

    async def measure_open(self, share: float, full_rate: float) -> dict[str, Any]:
        """Return the record of an open loop of `--open-s` seconds at a share of a rate."""
        rate = share * full_rate
        load = self._load(1, max(LEAST_REQUESTS, math.ceil(rate * self._arguments.open_s)), self._scale)
        traces, wall_s = await run_open(load, rate, self._speak, self._lines)
        check(traces)
        about = {"family": self._arguments.family, "frames": self._arguments.frames, "share": share}
        return about | {"rate": round(rate, 3)} | summarise(traces, wall_s)

    def _load(self, concurrency: int, requests: int, scale: float | None) -> Load:
        text_rows = TEXT_ROWS if self._model.has_text else None
        return Load(concurrency, requests, self._arguments.frames + self._model.tail_rows, scale, text_rows)

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
        left_out = {}
        if "unguided" in rounds:
            record["cfg_retention"] = ratio(*(list(map(throughput, rounds[arm])) for arm in ("speaking", "unguided")))
            guided = [trace for run in speaking + rounds.get("mixed", []) for trace in run[0]]
            record["unguided_total"] = sum(trace.unguided_frames for trace in guided)
        else:
            left_out["cfg_retention"] = f"{self._model.family} is not guided by its authors"
        if self._listen is None:
            left_out["mixed"] = f"{self._model.family} does not understand audio"
        if left_out:
            record["left_out"] = left_out
        record |= cpu_figures(used, concurrency * self._arguments.requests * self._arguments.frames)
        return record | summarise([trace for run in speaking for trace in run[0]], sum(run[1] for run in speaking))


def cpu_figures(used: list[dict[str, float]], num_frames: int) -> dict[str, Any]:
    """Return medians over rounds of `num_frames` frames, from the seconds of processor time of each process."""

    def per_s(seconds: Callable[[dict[str, float]], float]) -> float:
        return round(statistics.median(num_frames / max(seconds(each), 1e-9) for each in used), 1)

    if not all(used):
        return {}
    parts = {name: statistics.median(1e3 * each[name] / num_frames for each in used) for name in used[0]}
    return {
        "frames_per_cpu_s": per_s(lambda each: sum(each.values())),
        "frames_per_engine_cpu_s": per_s(lambda each: each[ENGINE]),
        "cpu_ms_per_frame": {name: round(ms, 3) for name, ms in parts.items()},
    }


def mixed_figures(mixed: list[Run], speaking: list[Run]) -> dict[str, Any]:
    """Return the figures of streams during audio input, and their ratios to the same streams alone."""
    figures = summarise([trace for run in mixed for trace in run[0]], sum(run[1] for run in mixed))
    return {
        "ttfp_ratio": ratio(list(map(ttfp, mixed)), list(map(ttfp, speaking))),
        "rtf_ratio": ratio(list(map(rtf, mixed)), list(map(rtf, speaking))),
        "throughput_ratio": ratio(list(map(throughput, mixed)), list(map(throughput, speaking))),
        **{name: value for name, value in figures.items() if name.startswith(("audio_", "success"))},
    }


def throughput(run: Run) -> float:
    """Return seconds of audio per second of wall time."""
    return sum(trace.audio_s for trace in run[0]) / run[1]


def ttfp(run: Run) -> float:
    """Return the median `audio_ttfp` of a run."""
    return statistics.median(trace.first_s for trace in run[0])


def rtf(run: Run) -> float:
    """Return the median `audio_rtf` of a run."""
    return statistics.median(((trace.finished or 0.0) - trace.sent) / trace.audio_s for trace in run[0])


async def measure_family(arguments: argparse.Namespace) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Yield the benchmark's name and the record of each concurrency, of each open loop, and of the parts of a frame."""
    model = SMALL_MODELS[arguments.family]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(model.family, Path(folder) / "checkpoint")
        family = family_at(checkpoint)
        if not family.not_served:
            make(checkpoint, Path(folder) / "repository", {"max_num_seqs": MAX_ROWS})
            async for named in _measure_served(Path(folder) / "repository", model, arguments):
                yield named
        if family.depth is not None:
            from benchmarks.frame_parts import measure_parts  # vllm reads the environment when it is imported

            for record in measure_parts(checkpoint, model, arguments):
                yield "frame_parts", record


async def _measure_served(
    repository: Path, model: SmallModel, arguments: argparse.Namespace
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    with serving(repository) as address:
        async with SpeechClient(address) as client:
            pids = served_processes() | {CLIENT: os.getpid()}
            listen = None if model.listen is None else listener(client, model)
            load = FamilyLoad(model, speaker(client, model), listen, arguments, lambda: cpu_s(pids))
            full_rate = 0.0
            for concurrency in arguments.concurrency:
                record = await load.measure(concurrency)
                full_rate = record["requests_per_s"]
                yield "families", record
            for share in arguments.open_loop:
                yield "families_open", await load.measure_open(share, full_rate)
