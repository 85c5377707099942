"""What a second of audio costs, process by process: the engine, the decoder, and the rim that carries it to a listener.

    python -m benchmarks.rim --streams 1 16

A server is started for it. Closed loops of utterances of equal, forced length, with guidance and without, take turns;
counted is the processor time, user and system, of every process of the server and of this one, the client, which does
nothing else. `rim_ms` is that of the proxy, Triton's own process, the language model's stub and the client. One line of
JSON for each number of streams, with guidance and without; then the table.

With --profile DIR every process but the server's own is watched by py-spy, which then has to be installed; figures of
such a run are not kept.
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

from benchmarks.ensemble import through_triton
from benchmarks.process_watch import cpu_s, served_processes
from benchmarks.results_file import append_result
from benchmarks.speech_load import Load, Speak, check, run, texts
from benchmarks.temporary_server import command_line, serving, stop_on_sigterm
from stretto_client import SpeechClient

CLIENT = "client"
RIM = ("proxy", "tritonserver", "language_model", CLIENT)
ORDER = ("proxy", "tritonserver", "preprocessor", "language_model", "engine", "acoustic_decoder", CLIENT)
GUIDANCE = 1.5


@dataclass
class Arm:
    """One load, and the milliseconds of processor time per second of audio that its rounds took, by process."""

    load: Load
    rounds: list[dict[str, float]] = field(default_factory=list)

    @property
    def is_guided(self) -> bool:
        """Whether it asks for guidance."""
        return self.load.guidance_scale != 1.0

    def record(self) -> dict[str, Any]:
        """Its figures: the median over the rounds of each process, and of the rim and of all together."""
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
    """One more round of an arm."""
    before = cpu_s(pids)
    traces, _ = await run(arm.load, speak, lines)
    after = cpu_s(pids)
    check(traces)
    audio_s = sum(trace.audio_s for trace in traces)
    arm.rounds.append({name: 1e3 * (after[name] - before[name]) / audio_s for name in pids})


async def measure(server: str, arguments: argparse.Namespace) -> list[Arm]:
    """All arms, in turns."""
    arms = [
        Arm(Load(streams, max(1, arguments.utterances // streams), arguments.frames, scale))
        for streams in arguments.streams
        for scale in (GUIDANCE, 1.0)
    ]
    pids = served_processes(os.getpid())
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
    """With a `folder`, a profile of each process that runs Python: its stacks, and how often each was seen."""
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
    """The figures for a page: a row for each process, a column for each arm."""
    records = [arm.record() for arm in arms]
    heads = [f"{each['streams']} {'guided' if each['guided'] else 'unguided'}" for each in records]
    rows = [
        [name, *(f"{each['cpu_ms_per_audio_s'][name]:.1f}" for each in records)]
        for name in records[0]["cpu_ms_per_audio_s"]
    ]
    rows += [[name, *(f"{each[f'{name}_ms']:.1f}" for each in records)] for name in ("rim", "total")]
    lines = [["process", *heads], ["---"] * (1 + len(heads)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: argparse.Namespace) -> None:
    """Start a server, count, tell."""
    if arguments.profile is not None and shutil.which("py-spy") is None:
        raise SystemExit("--profile needs py-spy in PATH")
    with serving(arguments.model_repository) as server:
        arms = asyncio.run(measure(server, arguments))
    for arm in arms:
        append_result(arguments.out if arguments.profile is None else None, "rim", arm.record())
    print(table(arms))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, "rim")
    add = parser.add_argument
    add("--streams", type=int, nargs="+", default=[1, 16])
    add("--utterances", type=int, default=32, help="of all streams together, in a round")
    add("--frames", type=int, default=75, help="frames of each utterance")
    add("--rounds", type=int, default=3, help="times that the arms take turns")
    add("--profile", type=Path, help="a folder for profiles by py-spy")
    return parser.parse_args()


if __name__ == "__main__":
    stop_on_sigterm()
    main(parse())
