"""Measure the first audio of requests that arrive together, and the bound that their necessary work sets.

    python -m benchmarks.at_once --at-once 4 16
    python -m benchmarks.at_once --at-once 16 --family qwen3-tts-small

Single requests, and `--at-once` requests sent at the same moment, take turns with the work that no server can avoid.
It is measured in this process, without server and client, for one reply and for all of them:

    engine     the steps until every reply has its first chunk; all prompts are there before the first step
    decoder    one batch with the first window of every reply

The engine is a single thread, and the decoder needs an engine's last frame. The last of N requests can therefore not be
answered before

    bound = first audio of one request + engine of N - engine of one + decoder of N - decoder of one

The work of the other N - 1 requests in proxy, Triton, preprocessor and client is not counted, because the second core
may do it meanwhile. A round has one turn of everything. `over_bound` is the median over the rounds of the 95th
percentile of the first audio divided by the bound, and `over_alone` the same divided by the first audio of one.

Other load on the machine delays the many processes of a server more than this process. `engine_over_necessary` is
therefore the same comparison in processor time: that of the server's engine from the requests to the last first audio,
divided by that of the necessary steps. It includes the steps that the engine computes while the last chunk is decoded
and sent. The benchmark writes one line of JSON for each number of requests.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.decoder import CountingReply, random_codes
from benchmarks.engines import SteppedEngine, split_trailer
from benchmarks.ensemble import ENGINE, MAX_ROWS
from benchmarks.harness import (
    CHECKPOINT,
    ENGINE_ARGS,
    ROOT,
    append_result,
    command_line,
    served_processes,
    serving,
    stop_on_sigterm,
)
from benchmarks.loads import Trace, check, follow, percentiles
from lab.releases.small_models import SMALL_MODELS, write_checkpoint
from lab.texts import texts
from stretto import cpu_backend as cpu_kernels
from stretto.codecs.base import Codec
from stretto.config import DecoderConfig, EngineConfig
from stretto.convert.make_repository import make
from stretto.decoder.worker import DecoderWorker
from stretto.engine.environment import prepare_environment
from stretto.engine.host import vllm_config
from stretto.engine.protocol import read_rows
from stretto.engine.reply_rules import ReplyState
from stretto.engine.utterance import Utterance
from stretto.family.text import load_text_codec
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.chunk import Chunk
from stretto.records.prompt import Prompt
from stretto.streams.chunking import ChunkPolicy, Pacer
from stretto.streams.layout import Segment
from stretto_client import SpeechClient

prepare_environment()

from vllm.v1.request import RequestStatus  # noqa: E402

ALONE = 3  # requests of a round that are sent one at a time
RANDOM_ROWS = 50  # audio rows of a reply of a model with random weights

Write = Callable[[str, int], Prompt]  # returns the prompt of a text and a seed


class Spent(NamedTuple):
    """Wall time, and processor time of the engine's thread or the decoder's process, in seconds."""

    wall_s: float
    cpu_s: float


class NecessarySteps:
    """An engine in this process that computes replies up to their first chunks.

    Args:
        config: Configuration of the engine.
    """

    def __init__(self, config: EngineConfig):
        self._engine = SteppedEngine(vllm_config(config))
        self._rules = self._engine.scheduler.table.rules
        self._text = load_text_codec(self._rules.family, config.checkpoint)

    def run(self, prompts: Sequence[Prompt]) -> Spent:
        """Return the time of the steps until every reply has the frames of its smallest permitted first chunk."""
        family = self._rules.family
        scheduler = self._engine.scheduler
        wall_s = 0.0
        cpu_s = 0.0
        pending = {}
        for request_id, prompt in zip(self._engine.add_prompts(prompts), prompts, strict=True):
            begun = ReplyState.begin(self._rules, family.task(prompt.task), len(prompt.rows))
            pacer = Pacer(replace(prompt.delivery.chunking, deterministic=True))
            pending[request_id] = Utterance(begun, prompt.words, self._text, pacer)
        while pending:
            wall = time.perf_counter()
            cpu = time.thread_time()
            outputs = list(self._engine.outputs())
            wall_s = wall_s + time.perf_counter() - wall
            cpu_s = cpu_s + time.thread_time() - cpu
            for output in outputs:
                has_ended = output.finish_reason is not None
                ids = output.new_token_ids
                rows = read_rows(split_trailer(ids)[0] if has_ended else ids, self._rules.num_row_words)
                reply = pending.get(output.request_id)
                if has_ended or (reply is not None and any(chunk.codes is not None for chunk in reply.push(rows))):
                    pending.pop(output.request_id, None)
        scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
        self._engine.step()
        return Spent(wall_s, cpu_s)


class FirstWindows:
    """A decoder in this process that decodes the first windows of utterances in one batch.

    Args:
        codec: Codec.
        policy: Chunk sizes of the replies.
    """

    def __init__(self, codec: Codec, policy: ChunkPolicy):
        self._worker = DecoderWorker(codec, DecoderConfig())
        self._turn = 0
        self._codes = random_codes(codec, 1, policy.first_frames + policy.held_frames)[0].numpy()

    def run(self, number: int) -> Spent:
        """Return the time to decode the first windows of `number` utterances."""
        self._turn += 1
        wall = time.perf_counter()
        cpu = time.process_time()
        self._push(number, 0)
        spent = Spent(time.perf_counter() - wall, time.process_time() - cpu)
        self._push(number, 1)
        return spent

    def _push(self, number: int, index: int) -> None:
        reply = CountingReply(number)
        for stream in range(number):
            chunk = Chunk(index, Segment.AUDIO, is_final=index == 1)
            self._worker.push(f"{self._turn}.{stream}", chunk, self._codes, reply)
        reply.wait()

    def stop(self) -> None:
        """Stop the decoder's thread."""
        self._worker.stop()


@dataclass(slots=True)
class WatchedTrace(Trace):
    """Trace that calls `on_first` when its first samples arrive, or its request ends without any."""

    on_first: Callable[[], None] = lambda: None

    def add(self, now: float, pcm: np.ndarray, sample_rate: int) -> None:
        Trace.add(self, now, pcm, sample_rate)
        if len(self.arrivals) == 1:
            self.on_first()


Send = Callable[[Trace], Awaitable[Trace]]
Used = Callable[[], float]


async def first_audio(number: int, send: Send, used: Used) -> tuple[list[float], float]:
    """Send requests at the same moment; return the first audio of each in seconds, once all have ended.

    Args:
        number: Number of requests.
        send: Sends a request and fills in its trace.
        used: Returns the processor time of the engine so far, in seconds.

    Returns:
        First audio of each request, and the engine's processor time until the last one.
    """
    spent_s, before_s, left = 0.0, used(), number

    def count() -> None:
        nonlocal spent_s, left
        left -= 1
        if left == 0:
            spent_s = used() - before_s

    traces = [WatchedTrace(time.perf_counter(), on_first=count) for _ in range(number)]
    check(list(await asyncio.gather(*map(send, traces))))
    return [trace.first_s for trace in traces], spent_s


async def measure(
    number: int, rounds: int, send: Send, used: Used, steps: Callable[[int], Spent], windows: Callable[[int], Spent]
) -> dict[str, Any]:
    """Take turns with `number` requests, single ones, and the necessary work of both; return the record.

    Args:
        number: Number of requests that arrive together.
        rounds: Number of rounds after one that warms up.
        send: Sends a request and fills in its trace.
        used: Returns the processor time of the server's engine so far, in seconds.
        steps: Returns the time of the necessary steps, given the number of replies.
        windows: Returns the time to decode the first windows, given the number of replies.
    """
    turns = list[dict[str, Any]]()
    for _ in range(rounds + 1):
        alone = [await first_audio(1, send, used) for _ in range(ALONE)]
        together, spent_s = await first_audio(number, send, used)
        turn: dict[str, Any] = {"alone": [first[0] for first, _ in alone], "all": together}
        turn["used"] = {"one": statistics.median(seconds for _, seconds in alone), "all": spent_s}
        for name, run in (("engine", steps), ("decoder", windows)):
            turn[name] = {"one": run(1), "all": run(number)}
        turns.append(turn)
    return {"at_once": number, "rounds": rounds} | figures(turns[1:])


def figures(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of the rounds.

    Args:
        turns: For each round, first audio of the single requests (`alone`) and of those that arrive together (`all`),
            in seconds; `Spent` of `engine` and `decoder` for `one` reply and for `all`; and the processor time that the
            server's engine has `used` for each.
    """

    def more(turn: dict[str, Any], clock: str) -> float:
        spent = [turn[side] for side in ("engine", "decoder")]
        return float(sum(getattr(of_side["all"], clock) - getattr(of_side["one"], clock) for of_side in spent))

    def last(turn: dict[str, Any]) -> float:
        return float(np.percentile(turn["all"], 95))

    def median(values: Iterator[float]) -> float:
        return round(statistics.median(values), 4)

    alone = [statistics.median(turn["alone"]) for turn in turns]
    bounds = [one + more(turn, "wall_s") for one, turn in zip(alone, turns, strict=True)]
    return {
        **percentiles("alone", [seconds for turn in turns for seconds in turn["alone"]]),
        **percentiles("first_audio", [seconds for turn in turns for seconds in turn["all"]]),
        "bound": median(iter(bounds)),
        "over_bound": median(last(turn) / bound for bound, turn in zip(bounds, turns, strict=True)),
        "over_alone": median(last(turn) / one for one, turn in zip(alone, turns, strict=True)),
        "engine_over_necessary": {
            name: median(turn["used"][name] / turn["engine"][name].cpu_s for turn in turns) for name in ("one", "all")
        },
        "engine_used_cpu_s": {name: median(turn["used"][name] for turn in turns) for name in ("one", "all")},
        **{
            f"{side}_{clock}": {name: median(getattr(turn[side][name], clock) for turn in turns) for name in turn[side]}
            for turn in turns[:1]
            for side in ("engine", "decoder")
            for clock in ("wall_s", "cpu_s")
        },
    }


@contextlib.contextmanager
def released(family: str | None, folder: Path, repository: Path) -> Iterator[tuple[Path, Path, EngineConfig]]:
    """Yield the repository to serve, its checkpoint and its engine's configuration.

    Args:
        family: Name of a small model, or None for the bundled model.
        folder: Folder for the small model.
        repository: Model repository of the bundled model.
    """
    if family is None:
        yield repository, ROOT / CHECKPOINT, EngineConfig.from_file(ENGINE_ARGS, CHECKPOINT)
        return
    checkpoint = write_checkpoint(SMALL_MODELS[family].family, folder / "checkpoint")
    repository = folder / "repository"
    make(checkpoint, repository, {"max_num_seqs": MAX_ROWS})
    yield repository, checkpoint, EngineConfig.from_file(repository / "language_model/1/engine.json", checkpoint)


def thread_s(pid: int) -> float:
    """Return the processor time of a process's main thread so far, in seconds, with a resolution of nanoseconds."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def options_of(family: str | None) -> dict[str, Any]:
    """Return the options of every request. They fix the length, because random weights seldom end a reply."""
    if family is None:
        return {}
    return {**SMALL_MODELS[family].options, "audio": {"min_rows": RANDOM_ROWS, "max_rows": RANDOM_ROWS}}


def prompt_writer(family: str | None, preprocessor: Preprocessor) -> Write:
    """Return the function that makes the prompt of a text and a seed, as the server's preprocessor does."""
    task = "tts" if family is None else SMALL_MODELS[family].speak
    fixed = options_of(family)

    def write(text: str, seed: int) -> Prompt:
        return preprocessor.prepare(RawRequest(text=text, task=task, options=json.dumps({**fixed, "seed": seed})))

    return write


async def main(arguments: argparse.Namespace) -> None:
    """Start a server, measure each number of requests, and write the lines."""
    family = arguments.family
    lines = texts()
    seeds = itertools.count()
    with (
        tempfile.TemporaryDirectory() as folder,
        released(family, Path(folder), arguments.model_repository) as (repository, checkpoint, config),
        serving(repository) as address,
    ):
        cpu_kernels.install()
        steps = NecessarySteps(config)
        preprocessor = Preprocessor(checkpoint)
        write = prompt_writer(family, preprocessor)
        windows = FirstWindows(preprocessor.codec, write(next(lines), 0).delivery.chunking)
        async with SpeechClient(address) as client:
            options = options_of(family)
            pid = served_processes()[ENGINE]
            for number in arguments.at_once:
                record = await measure(
                    number,
                    arguments.rounds,
                    lambda trace: follow(trace, client.speak(next(lines), seed=next(seeds), **options)),
                    lambda: thread_s(pid),
                    lambda count: steps.run([write(next(lines), next(seeds)) for _ in range(count)]),
                    windows.run,
                )
                append_result(arguments.out, "at_once", {"family": family or "tiny"} | record)
        windows.stop()


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_line(
        __doc__,
        "at_once",
        serves=True,
        at_once=([4, 16], "numbers of requests that arrive together"),
        rounds=(8, "number of rounds after one that warms up"),
    )
    parser.add_argument("--family", choices=SMALL_MODELS, help="small model to serve; default: the bundled model")
    return parser.parse_args(words)


if __name__ == "__main__":
    stop_on_sigterm()
    asyncio.run(main(parse()))
