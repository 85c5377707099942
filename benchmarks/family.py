"""A published family in small under load: how it speaks, what guidance keeps, and what listening beside it costs.

Part of `benchmarks.ensemble` (`--family`): a random checkpoint is made and converted on the spot (`small_models.py`), a
server is started for it and stopped afterwards. Frame counts are forced, and the rows of text before them. Arms take
turns, round after round: `speaking`; `unguided`, where the family knows guidance; and `mixed`, in which as many
closed loops of requests to understand audio run beside the streams for as long as these do.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.checkpoints.small_models import SMALL_MODELS, SmallModel, write_checkpoint
from benchmarks.speech_load import Load, Speak, check, follow, ratio, run, texts
from benchmarks.speech_metrics import Trace, percentiles, summarise
from benchmarks.temporary_server import serving
from stretto.checkpoints.make_repository import make
from stretto.families.opuslm.family import NUM_STREAMS, OpusVocabulary
from stretto_client import SpeechClient
from stretto_client.inputs import audio_inputs, options_json, strings

MAX_ROWS = 64  # of a step
TEXT_ROWS = 8  # before the audio
HEARD_S, HEARD_RATE, FRAME_RATE = 5, 16_000, 50
ANSWER = {"text": {"min_rows": 32, "max_rows": 32}}
QUESTION = "what do you hear?"

Listen = Callable[[int], Awaitable[float]]  # a request, by its seed; the seconds until its answer was complete
Run = tuple[list[Trace], float]


def speaker(client: SpeechClient, model: SmallModel) -> Speak:
    """One turn of the user, to be answered by speech."""

    async def speak(text: str, options: dict[str, Any]) -> Trace:
        messages = json.dumps([{"role": "user", "text": text}])
        inputs = strings(messages=messages, task=model.speak, options=options_json(options))
        return await follow(Trace(sent=time.perf_counter()), client.send(inputs))

    return speak


def listener(client: SpeechClient, model: SmallModel) -> Listen:
    """Five seconds to be understood: samples for Bagpiper, with a question; codes for OpusLM. Answers are as long."""

    async def listen(seed: int) -> float:
        random = np.random.default_rng(seed)
        turn: dict[str, Any] = {"role": "user"}
        if model.listen == "understand":
            pcm = 0.1 * random.standard_normal(HEARD_S * HEARD_RATE).astype(np.float32)
            inputs, turn = audio_inputs((pcm, HEARD_RATE)), turn | {"audio": "pcm_in", "text": QUESTION}
        else:
            inputs, turn = [], turn | {"codes": heard_codes(random)}
        begun = time.perf_counter()
        options = options_json(ANSWER | {"seed": seed})
        inputs += strings(messages=json.dumps([turn]), task=model.listen, options=options)
        async for _ in client.send(inputs):
            pass
        return time.perf_counter() - begun

    return listen


def heard_codes(random: np.random.Generator) -> list[list[int]]:
    """Codes of OpusLM's nine streams, semantic tokens first."""
    vocabulary = OpusVocabulary()
    sizes = [vocabulary.ssl[1] - vocabulary.ssl[0], *[vocabulary.codebook_size] * (NUM_STREAMS - 1)]
    return [random.integers(0, size, HEARD_S * FRAME_RATE).tolist() for size in sizes]


async def beside(
    listen: Listen, number: int, seeds: Iterator[int], speaking: Awaitable[Any]
) -> tuple[Any, list[float]]:
    """What `speaking` yields, with `number` closed loops of `listen` beside it, and the seconds of each answer.

    ClientError where one was refused or failed."""
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
    """The arms at one concurrency, and what came of their rounds."""

    def __init__(self, model: SmallModel, speak: Speak, listen: Listen, arguments: argparse.Namespace):
        self._model, self._speak, self._listen = model, speak, listen
        self._arguments, self._lines, self._seeds = arguments, texts(), iter(range(1, 1 << 30))
        self._scale = arguments.guidance or model.guidance_scale if model.guidance_scale is not None else None

    async def measure(self, concurrency: int) -> dict[str, Any]:
        """The record of one concurrency."""
        listeners = concurrency if self._arguments.listeners is None else self._arguments.listeners
        rounds: defaultdict[str, list[Run]] = defaultdict(list)
        answers: list[float] = []
        for number in range(self._arguments.rounds + 1):  # the first warms up
            rounds["speaking"].append(await self._run(concurrency, self._scale))
            if self._scale is not None:
                rounds["unguided"].append(await self._run(concurrency, 1.0))
            mixed, heard = await beside(self._listen, listeners, self._seeds, self._run(concurrency, self._scale))
            rounds["mixed"].append(mixed)
            answers += heard if number else []
        return self._record(concurrency, listeners, {arm: runs[1:] for arm, runs in rounds.items()}, answers)

    async def _run(self, concurrency: int, scale: float | None) -> Run:
        arguments = self._arguments
        text_rows = TEXT_ROWS if self._model.has_text else None
        load = Load(concurrency, arguments.requests, arguments.frames, scale, text_rows)
        traces, wall_s = await run(load, self._speak, self._lines)
        check(traces)
        return traces, wall_s

    def _record(
        self, concurrency: int, listeners: int, rounds: dict[str, list[Run]], answers: list[float]
    ) -> dict[str, Any]:
        speaking, mixed = rounds["speaking"], rounds["mixed"]
        record: dict[str, Any] = {
            "family": self._arguments.family,
            "concurrency": concurrency,
            "frames": self._arguments.frames,
            "text_rows": TEXT_ROWS if self._model.has_text else 0,
            "guidance_scale": self._scale,
        }
        if "unguided" in rounds:
            record["cfg_retention"] = ratio(*(list(map(throughput, rounds[arm])) for arm in ("speaking", "unguided")))
            record["unguided_total"] = sum(trace.unguided_frames for run in speaking + mixed for trace in run[0])
        else:
            record["left_out"] = {"cfg_retention": f"{self._model.family} knows no guidance"}
        record |= summarise([trace for run in speaking for trace in run[0]], sum(run[1] for run in speaking))
        beside_others = summarise([trace for run in mixed for trace in run[0]], sum(run[1] for run in mixed))
        record["mixed"] = {
            "listeners": listeners,
            "answers": len(answers),
            **percentiles("answer_s", answers),
            "ttfp_ratio": ratio(list(map(ttfp, mixed)), list(map(ttfp, speaking))),
            "rtf_ratio": ratio(list(map(rtf, mixed)), list(map(rtf, speaking))),
            "throughput_ratio": ratio(list(map(throughput, mixed)), list(map(throughput, speaking))),
            **{name: value for name, value in beside_others.items() if name.startswith(("audio_", "success"))},
        }
        return record


def throughput(run: Run) -> float:
    """Seconds of audio per second of wall."""
    return sum(trace.audio_s for trace in run[0]) / run[1]


def ttfp(run: Run) -> float:
    """The median `audio_ttfp` of a run."""
    return statistics.median(trace.arrivals[0] - trace.sent for trace in run[0])


def rtf(run: Run) -> float:
    """The median `audio_rtf` of a run."""
    return statistics.median(((trace.finished or 0.0) - trace.sent) / trace.audio_s for trace in run[0])


async def measure_family(arguments: argparse.Namespace) -> AsyncIterator[dict[str, Any]]:
    """A record for every concurrency."""
    model = SMALL_MODELS[arguments.family]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(model.family, Path(folder) / "checkpoint")
        make(checkpoint, Path(folder) / "repository", {"max_num_seqs": MAX_ROWS})
        with serving(Path(folder) / "repository") as address:
            async with SpeechClient(address) as client:
                load = FamilyLoad(model, speaker(client, model), listener(client, model), arguments)
                for concurrency in arguments.concurrency:
                    yield await load.measure(concurrency)
