"""Processor time of rows of live sessions, relative to rows of recordings: small random models.

    python -m benchmarks.live_rows --sessions 8 32 64 --family moshi --window 512

Four arms take turns on one engine in this process. `recordings` reads complete recordings. `live` gives each session a
frame before each step, in one message for all, as the front end sends it; `apart` sends one message for each session.
`silent` gives frames to eight of the sessions, while the others wait. Time is that of this thread: encoding, decoding
and applying the messages, and the step. One line of JSON for each number of sessions, with medians over the steps.
`planning_over_recordings` compares the scheduler's `schedule` alone, which keeps the plan of a step for recordings but
not for live sessions.

`--window W` also runs eight live sessions of 3 W rows of a model with an attention window of W rows.
`late_over_early` is the time of a step in rows 2.9 W to 3 W divided by that in rows W to 1.1 W.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from benchmarks.checkpoints import random_kyutai_stt, random_moshi
from benchmarks.engines import MethodWatch, SteppedEngine, engine_args
from benchmarks.harness import append_result, command_line, median_ratio
from stretto.convert.command import main as convert
from stretto.engine.client import EngineClient, EngineReady
from stretto.families.kyutai_stt.family import KyutaiVocabulary, SttVocabulary
from stretto.families.kyutai_stt.prompt import initial_row
from stretto.families.moshi.family import NAME as MOSHI
from stretto.families.moshi.family import MoshiVocabulary
from stretto.families.moshi.prompt import first_row, user_ids
from stretto.family.live_audio import FrameIds
from stretto.family.plugin import NAME as FAMILY
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.family.prompting import PromptRows
from stretto.records.prompt import Prompt

from vllm.v1.engine import EngineCoreRequest  # isort: skip
from vllm.v1.serial_utils import MsgpackDecoder  # isort: skip

NAME = "live_rows"
SIZE: dict[str, Any] = {"dim": 256, "num_heads": 4, "num_layers": 4, "context": 64}
ROWS_LEFT_OUT = 16  # at the beginning: prompts, and the first steps
NUM_SPEAKING = 8  # in the arm `silent`
ENGINE = b"\x00\x00"


class Messages:
    """Connection that keeps what the front end sends."""

    def __init__(self) -> None:
        sizes = EngineReady(max_model_len=1, num_gpu_blocks=1, block_size=1, max_num_seqs=1)
        self.readies = {ENGINE: sizes}
        self.started = SimpleNamespace(pids=[])
        self.sent: list[bytes] = []

    def listen(self, on_message: Callable[[bytes], None]) -> None:
        """Do nothing: the engine's outputs are not sent."""

    def send(self, engine: bytes, kind: bytes, record: bytes) -> None:
        """Keep a message."""
        self.sent.append(record)


@dataclass(frozen=True)
class Times:
    """Processor time of each step of a run, in milliseconds.

    Attributes:
        step_ms: Messages and step.
        planning_ms: The scheduler's `schedule`.
    """

    step_ms: list[float]
    planning_ms: list[float]


class Arms:
    """Runs of one engine.

    Args:
        checkpoint: Folder of the checkpoint.
        most: Maximum number of sessions.
        num_frames: Number of frames of each session.

    Attributes:
        num_messages: Number of messages in the last run of sessions.
    """

    def __init__(self, checkpoint: Path, most: int, num_frames: int):
        args = engine_args(4 * num_frames, most, max_num_seqs=most)
        self.engine = SteppedEngine.from_args(checkpoint, args)
        self._frames = num_frames
        task = family_at(checkpoint).tasks[0]
        written, to_ids, known = inputs(checkpoint)
        random = np.random.default_rng(0)
        shape = (most, known.num_codebooks, num_frames)
        self._ids = [to_ids().push(codes) for codes in random.integers(0, known.codebook_size, shape)]
        sampling = replace(task.sampling, seed=0)
        self._prompt = Prompt(task.name, written.rows, sampling, delayed_tail=written.delayed_tail)
        self._decoder = MsgpackDecoder(EngineCoreRequest)
        self.num_messages = 0

    def recordings(self, number: int) -> Times:
        """Run recordings that are complete."""
        tracks = [tuple(self._ids[at].reshape(-1).tolist()) for at in range(number)]
        self.engine.add_prompts([replace(self._prompt, track=track) for track in tracks])
        return self._time_steps(lambda _: None)

    async def live(self, number: int, speaking: int, is_apart: bool = False) -> Times:
        """Run sessions, some of which receive a frame before each step."""
        sessions = self.engine.add_prompts([replace(self._prompt, is_open=True)] * number)
        connection = Messages()
        self.num_messages = 0
        client = EngineClient(cast(Any, connection))
        client._ids = {name: name for name in sessions}
        client._requests = {name: cast(Any, SimpleNamespace(id=name, engine=ENGINE)) for name in sessions}

        def write(step: int) -> None:
            for at, name in enumerate(sessions[:speaking]):
                client.append(name, self._ids[at][step], step == self._frames - 1)
                if is_apart:
                    client._flush()
            if not is_apart:
                client._flush()
            for record in connection.sent:
                request, wave = self.engine.core.preprocess_add_request(self._decoder.decode(record))
                self.engine.core.add_request(request, wave)
            self.num_messages += len(connection.sent)
            connection.sent.clear()

        taken = self._time_steps(write)
        self.engine.core.abort_requests(sessions[speaking:])
        self.engine.finish()
        return taken

    def _time_steps(self, before: Callable[[int], None]) -> Times:
        times = Times([], [])

        def timed(inner: Callable[..., Any], taken_ms: list[float]) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                begun_s = time.thread_time()
                result = inner(*args)
                taken_ms.append(1e3 * (time.thread_time() - begun_s))
                return result

            return call

        def run(step: int) -> None:
            before(step)
            self.engine.step()

        with MethodWatch() as watch:
            watch.replace(self.engine.scheduler, "schedule", lambda inner: timed(inner, times.planning_ms))
            for step in range(self._frames):
                timed(run, times.step_ms)(step)
        self.engine.finish()
        return times


async def measure(arms: Arms, number: int, rounds: int) -> dict[str, Any]:
    """Run all arms in turns, and return the ratios between their medians."""
    taken = defaultdict[str, list[float]](list)
    planning = defaultdict[str, list[float]](list)
    for turn in range(1 + rounds):
        found = {
            "recordings": arms.recordings(number),
            "live": await arms.live(number, number),
            "apart": await arms.live(number, number, is_apart=True),
            "eight": await arms.live(NUM_SPEAKING, NUM_SPEAKING),
            "silent": await arms.live(number, NUM_SPEAKING),
        }
        for name, times in found.items() if turn else ():  # the first turn warms up
            taken[name].append(statistics.median(times.step_ms[ROWS_LEFT_OUT:]))
            planning[name].append(statistics.median(times.planning_ms[ROWS_LEFT_OUT:]))
    return {
        "sessions": number,
        "live_over_recordings": round(median_ratio(taken["live"], taken["recordings"]), 3),
        "apart_over_recordings": round(median_ratio(taken["apart"], taken["recordings"]), 3),
        "silent_over_eight": round(median_ratio(taken["silent"], taken["eight"]), 3),
        "planning_over_recordings": round(median_ratio(planning["live"], planning["recordings"]), 3),
        "cpu_ms_per_step": {name: round(statistics.median(each), 3) for name, each in taken.items()},
        "planning_cpu_ms_per_step": {name: round(statistics.median(each), 3) for name, each in planning.items()},
    }


async def measure_window(arms: Arms, window: int, rounds: int) -> dict[str, Any]:
    """Return the time of late steps relative to early ones, of sessions three attention windows long."""
    tenth = window // 10
    spans = {"early": slice(window, window + tenth), "late": slice(3 * window - tenth, 3 * window)}
    taken = defaultdict[str, list[float]](list)
    for turn in range(1 + rounds):
        step_ms = (await arms.live(NUM_SPEAKING, NUM_SPEAKING)).step_ms
        for name, span in spans.items() if turn else ():  # the first turn warms up
            taken[name].append(statistics.median(step_ms[span]))
    return {
        "sessions": NUM_SPEAKING,
        "window": window,
        "late_over_early": round(median_ratio(taken["late"], taken["early"]), 3),
        "cpu_ms_per_step": {name: round(statistics.median(each), 3) for name, each in taken.items()},
    }


def inputs(checkpoint: Path) -> tuple[PromptRows, Callable[[], FrameIds], KyutaiVocabulary]:
    """Return the prompt of a session, the function that opens a conversion of its codes, and the vocabulary."""
    config = config_at(checkpoint)
    if config[FAMILY] == MOSHI:
        moshi = MoshiVocabulary.from_record(config[VOCABULARY])
        return first_row(moshi), lambda: user_ids(moshi), moshi
    known = SttVocabulary.from_record(config[VOCABULARY])
    return PromptRows(initial_row(known)), lambda: FrameIds(known.first_codes), known


def make_checkpoint(folder: Path, family: str = "kyutai-stt", **size: int) -> Path:
    """Write a release to `folder` and convert it."""
    write = random_moshi.write_release if family == MOSHI else random_kyutai_stt.write_release
    release = write(folder / "release", **size)
    checkpoint = folder / "checkpoint"
    names = ["--model", str(release), "--config", str(release / "config.json"), "--out", str(checkpoint)]
    assert convert([family, *names]) == 0
    return checkpoint


def main(arguments: argparse.Namespace) -> None:
    """Print the figures of each number of sessions, and of the window."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        family = arguments.family
        window = arguments.window
        arms = Arms(make_checkpoint(folder / "rows", family, **SIZE), max(arguments.sessions), arguments.frames)
        for number in arguments.sessions:
            figures = asyncio.run(measure(arms, number, arguments.rounds))
            append_result(arguments.out, NAME, {"family": family, **figures})
        if window:
            checkpoint = make_checkpoint(folder / "window", family, **{**SIZE, "context": window})
            figures = asyncio.run(measure_window(Arms(checkpoint, NUM_SPEAKING, 3 * window), window, arguments.rounds))
            append_result(arguments.out, NAME, {"family": family, **figures})


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    return command_line(
        __doc__,
        NAME,
        sessions=([8, 32, 64], "sessions at once"),
        frames=(96, "frames of each session"),
        rounds=(5, "turns of each arm"),
        window=(0, "attention window of the second model, in rows; 0 for none"),
        family=("kyutai-stt", "kyutai-stt or moshi"),
    ).parse_args(words)


if __name__ == "__main__":
    main(parse())
