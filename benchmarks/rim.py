"""Processor time per second of audio, by process.

    python -m benchmarks.rim --streams 1 16

The benchmark starts its own server. Closed loops of utterances of equal, forced length alternate with and without
guidance. Counted is the processor time, user and system, of every process of the server and of this one, the client,
which does nothing else. `rim_ms` is the cost around the models: the proxy, Triton's own process, the language model's
stub and the client. One line of JSON for each number of streams, with and without guidance; then a table.

With --profile DIR, py-spy, which must be installed, samples every process except Triton's. The figures of such a run
are not written to the file.
"""

import argparse
import asyncio
import os
import shutil
import signal
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import append_result, command_line, cpu_s, served_processes, serving, stop_on_sigterm
from benchmarks.loads import Load, Speak, check, run, texts, through_triton
from stretto_client import SpeechClient

CLIENT = "client"
RIM = ("proxy", "tritonserver", "language_model", CLIENT)
ORDER = ("proxy", "tritonserver", "preprocessor", "language_model", "engine", "acoustic_decoder", CLIENT)
GUIDANCE = 1.5


@dataclass
class Arm:
    """One load, and for each round the milliseconds of processor time per second of audio by process."""

    load: Load
    rounds: list[dict[str, float]] = field(default_factory=list)

    @property
    def is_guided(self) -> bool:
        """True if requests are guided."""
        return self.load.guidance_scale != 1.0

    def record(self) -> dict[str, Any]:
        """Return the median over the rounds for each process, for the rim and in total."""
        sums = {
            "rim_ms": [sum(each.get(name, 0.0) for name in RIM) for each in self.rounds],
            "total_ms": [sum(each.values()) for each in self.rounds],
        }
        return {
            "streams": self.load.concurrency,
            "guided": self.is_guided,
            "utterances": self.load.concurrency * self.load.requests,
            "frames": self.load.frames,
            "rounds": len(self.rounds),
            "cpu_ms_per_audio_s": {
                name: round(statistics.median(each[name] for each in self.rounds), 2) for name in self.rounds[0]
            },
            **{name: round(statistics.median(values), 2) for name, values in sums.items()},
        }


async def count(arm: Arm, speak: Speak, lines: Iterator[str], pids: dict[str, int]) -> None:
    """Run one round of an arm."""
    before = cpu_s(pids)
    traces, _ = await run(arm.load, speak, lines)
    after = cpu_s(pids)
    check(traces)
    audio_s = sum(trace.audio_s for trace in traces)
    arm.rounds.append({name: 1e3 * (after[name] - before[name]) / audio_s for name in pids})


async def measure(server: str, arguments: argparse.Namespace) -> list[Arm]:
    """Run all arms alternately."""
    arms = [
        Arm(Load(streams, max(1, arguments.utterances // streams), arguments.frames, scale))
        for streams in arguments.streams
        for scale in (GUIDANCE, 1.0)
    ]
    pids = served_processes()
    pids = {name: pids[name] for name in ORDER if name in pids} | {CLIENT: os.getpid()}
    lines = texts()
    async with SpeechClient(server) as client:
        speak = through_triton(client)
        for arm in arms:  # the first round warms up
            await run(arm.load, speak, lines)
        with profiles(arguments.profile, pids):
            for _ in range(arguments.rounds):
                for arm in arms:
                    await count(arm, speak, lines, pids)
    return arms


@contextmanager
def profiles(folder: Path | None, pids: dict[str, int]) -> Iterator[None]:
    """Write a profile of each Python process to `folder`, if it is not None: stacks with their numbers of samples."""
    with ExitStack() as stack:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for name in pids.keys() - {"tritonserver"}:
                stack.enter_context(_profile(pids[name], folder / f"{name}.txt"))
        yield


@contextmanager
def _profile(pid: int, out: Path) -> Iterator[None]:
    command = ["py-spy", "record", "--pid", str(pid), "--format", "raw", "--rate", "200", "--output", str(out)]
    watcher = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        watcher.send_signal(signal.SIGINT)
        watcher.wait(60)


def table(arms: list[Arm]) -> str:
    """Return the figures in Markdown: a row for each process, a column for each arm."""
    records = [arm.record() for arm in arms]
    heads = [f"{each['streams']} {'guided' if each['guided'] else 'unguided'}" for each in records]
    rows = [
        [name, *(f"{each['cpu_ms_per_audio_s'][name]:.1f}" for each in records)]
        for name in records[0]["cpu_ms_per_audio_s"]
    ]
    rows += [[name, *(f"{each[f'{name}_ms']:.1f}" for each in records)] for name in ("rim", "total")]
    lines = [["process", *heads], ["---"] * (1 + len(heads)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    given = command_line(
        __doc__,
        "rim",
        serves=True,
        streams=([1, 16], "streams at once"),
        utterances=(32, "utterances of all streams together in a round"),
        frames=(75, "frames of each utterance"),
        rounds=(3, "turns of each arm"),
        profile=(Path, "folder for profiles by py-spy"),
    ).parse_args()
    stop_on_sigterm()
    if given.profile is not None and shutil.which("py-spy") is None:
        raise SystemExit("--profile needs py-spy in PATH")
    with serving(given.model_repository) as address:
        measured = asyncio.run(measure(address, given))
    for each in measured:
        append_result(given.out if given.profile is None else None, "rim", each.record())
    print(table(measured))
