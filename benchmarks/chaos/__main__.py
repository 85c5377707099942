"""Many streams of every kind for a while, then one fault after the other under that load, and what came of it.

    scripts/soak.sh --minutes 60        # in memory and a disk of its own, so that these may be filled

First every request of `asks.py` is sent alone: that is its reference. Then `--streams` clients send them at random, and
read as `readers.py` says; every answer is judged: it is complete and equal to its reference, or an error, and never
late (`--limit-s`). Memory is followed; threads, descriptors, shared memory and the server's
own figures must afterwards be those of an idle server. Then each fault of `faults.py` strikes while clients ask. One
line of JSON in `--out`, a report beside it, and status 1 where something is wrong.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.chaos import findings, remains
from benchmarks.chaos.answers import Answer
from benchmarks.chaos.asks import make_asks
from benchmarks.chaos.doors import Ask
from benchmarks.chaos.faults import (
    LAUNCHER,
    Ended,
    Fault,
    Fill,
    FullDiskKill,
    Jump,
    Kill,
    Replaced,
    Skipped,
    Stop,
    clock_environment,
)
from benchmarks.chaos.memory import IDLE_S, Follower, describe
from benchmarks.chaos.report import write_report
from benchmarks.chaos.streams import Outcomes, Servers, Streams, take_references
from benchmarks.process_watch import served_processes
from benchmarks.results_file import append_result
from benchmarks.temporary_server import Launch, command_line, free_ports, stop_on_sigterm

STUBS = ("preprocessor", "language_model", "acoustic_decoder")
STOPPED = ("proxy", "stretto_gateway", "tritonserver", *STUBS, "engine", LAUNCHER)
JUMPS = (3600.0, -3600.0)
FRONT_ENDS = ("proxy", "stretto_gateway")
KINDS = ("kill", "stop", "front-end", "shared-memory", "disk", "disk-kill", "clock")
SETTLE_S, AFTERWARDS_S = 2.0, 5.0  # of load before a fault, and after the server is right again


class Soak:
    """One run against one launch."""

    def __init__(self, launch: Launch, arguments: argparse.Namespace):
        self._launch, self._arguments = launch, arguments
        self._asks: list[Ask] = make_asks(arguments.seed)
        self._references: dict[str, Answer] = {}
        self._servers: Servers = {"grpc": launch.address, "gateway": f"localhost:{launch.gateway}"}
        self.wrong: list[str] = []

    async def take_references(self) -> None:
        """Ask for each alone; RuntimeError where one is not the same twice."""
        self._references = await take_references(self._servers, self._asks, self._arguments.limit_s)

    async def calm(self) -> dict[str, Any]:
        """The load and nothing else; the record of it."""
        arguments = self._arguments
        warmed = self._streams(seed=-1)
        warmed.start(arguments.streams)  # every thread of every pool is there, every buffer as long as it gets
        await warmed.stop()
        await asyncio.sleep(IDLE_S)
        before, follower = remains.look(self._launch.metrics), Follower(os.getpid())
        first, streams = follower.look(), self._streams(seed=0)
        streams.start(arguments.streams)
        until_s = time.monotonic() + 60 * arguments.minutes
        while time.monotonic() < until_s:
            await asyncio.sleep(arguments.interval_s)
            follower.look()
        await streams.stop()
        await asyncio.sleep(IDLE_S)
        last, after = follower.look(), remains.look(self._launch.metrics)
        processes = describe(follower, arguments.warm_up_minutes, first, last)
        wrong = findings.of_calm(streams.outcomes) + remains.left_over(before, after)
        wrong += findings.of_memory(processes, arguments.minutes - arguments.warm_up_minutes)
        self.wrong += wrong
        return {
            "minutes": arguments.minutes,
            "warm_up_minutes": arguments.warm_up_minutes,
            "processes": processes,
            "outcomes": told(streams.outcomes),
            "files": [before.files, after.files],
            "wrong": wrong,
        }

    async def strike(self, faults: Sequence[Fault]) -> list[dict[str, Any]]:
        """Each fault under load, a record for each; what is left in the end is looked at once."""
        records = []
        before = remains.look(self._launch.metrics)
        for number, fault in enumerate(faults):
            records.append(await self._strike_one(fault, seed=number + 1))
            print(f"chaos: {fault.name}: {records[-1]}", file=sys.stderr, flush=True)
        await asyncio.sleep(IDLE_S)
        self.wrong += remains.left_over(before, remains.look(self._launch.metrics))
        return records

    async def _strike_one(self, fault: Fault, seed: int) -> dict[str, Any]:
        streams = self._streams(seed)
        streams.start(self._arguments.streams)
        await asyncio.sleep(SETTLE_S)
        skipped, begun = None, time.monotonic()
        try:
            await fault.strike(self._launch)
        except Skipped as reason:
            skipped = str(reason)
        except (TimeoutError, Ended) as error:
            self.wrong.append(f"{fault.name}: {error}")
        right_s = await self._until_right(begun)
        await asyncio.sleep(AFTERWARDS_S)
        await streams.stop()
        wrong = [f"{fault.name}: {each}" for each in findings.of_fault(streams.outcomes, right_s)]
        self.wrong += wrong
        record = {"fault": fault.name, "right_s": right_s, "outcomes": told(streams.outcomes), "wrong": wrong}
        return record if skipped is None else {"fault": fault.name, "skipped": skipped}

    async def _until_right(self, begun: float) -> float | None:
        """Seconds until the server and the gateway answer right; None where they do not within the limit."""
        probes = [next(ask for ask in self._asks if ask.door == door) for door in self._servers]
        while probes and time.monotonic() - begun < self._arguments.limit_s:
            streams = self._streams(seed=0)
            probes = [ask for ask in probes if not await streams.is_right(ask)]
            await asyncio.sleep(0.2 * bool(probes))
        return None if probes else round(time.monotonic() - begun, 2)

    def _streams(self, seed: int) -> Streams:
        arguments = self._arguments
        return Streams(self._servers, self._asks, self._references, arguments.seed + seed, arguments.limit_s)


def told(outcomes: Outcomes) -> dict[str, Any]:
    """Outcomes for the record."""
    return {"verdicts": dict(sorted(outcomes.verdicts.items())), "errors": dict(outcomes.errors.most_common())}


def faults_of(kinds: Sequence[str], folder: Path) -> list[Fault]:
    """The faults of these kinds for the processes that run now, but for the clock's; a launcher's death comes last."""
    names = [name for name in served_processes(os.getpid()) if name != LAUNCHER] + [LAUNCHER]
    made: dict[str, list[Fault]] = {
        "stop": [Stop(name) for name in STOPPED if name not in FRONT_ENDS],
        "front-end": [Replaced(name) for name in FRONT_ENDS],
        "shared-memory": [Fill(Path("/dev/shm"))],
        "disk": [Fill(folder)],
        "disk-kill": [FullDiskKill(folder, "language_model")],
        "kill": [Kill(name) for name in names],
    }
    return [fault for kind, each in made.items() if kind in kinds for fault in each]


def run(arguments: argparse.Namespace) -> int:
    """All of it; the number of findings."""
    record: dict[str, Any] = {"streams": arguments.streams, "seed": arguments.seed}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        launch = Launch(arguments.model_repository, Path(folder), gateway=free_ports(1)[0])
        soak = Soak(launch, arguments)
        launch.start()
        try:
            asyncio.run(soak.take_references())
            record["calm"] = asyncio.run(soak.calm())
            print(f"chaos: the load alone: {record['calm']}", file=sys.stderr, flush=True)
            record["faults"] = asyncio.run(soak.strike(faults_of(arguments.faults, Path(folder))))
        finally:
            launch.stop()
        wrong += soak.wrong
        if "clock" in arguments.faults:
            record["faults"] += jump(Path(folder), arguments, wrong)
    record["wrong"] = wrong
    write_report(arguments.report, append_result(arguments.out, "chaos", record))
    return len(wrong)


def jump(folder: Path, arguments: argparse.Namespace, wrong: list[str]) -> list[dict[str, Any]]:
    """The faults of the clock, against a server of their own, whose clock is not the machine's."""
    (folder / "clocked").mkdir()
    environment = clock_environment(folder / "clocked")
    launch = Launch(arguments.model_repository, folder / "clocked", environment=environment, gateway=free_ports(1)[0])
    soak, faults = Soak(launch, arguments), [Jump(seconds) for seconds in JUMPS]
    launch.start()
    try:
        asyncio.run(soak.take_references())
        return asyncio.run(soak.strike(faults))
    finally:
        launch.stop()
        wrong += soak.wrong


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, "chaos")
    add = parser.add_argument
    add("--minutes", type=float, default=5.0, help="of load before the faults")
    add("--warm-up-minutes", type=float, help="of these, at whose end the slopes begin; by default a third")
    add("--streams", type=int, default=64)
    add("--faults", nargs="*", choices=KINDS, default=list(KINDS), help="those to make; none: the load alone")
    add("--limit-s", type=float, default=240.0, help="who has waited so long is hung")
    add("--interval-s", type=float, default=5.0, help="between two looks at the processes")
    add("--seed", type=int, default=0, help="of requests and readers")
    add("--folder", type=Path, help="of logs, which is filled for `disk`; one of this run's own")
    add("--report", type=Path, default=Path("benchmarks/results/chaos.md"))
    arguments = parser.parse_args(argv)
    if arguments.warm_up_minutes is None:
        arguments.warm_up_minutes = arguments.minutes / 3
    return arguments


if __name__ == "__main__":
    stop_on_sigterm()
    sys.exit(1 if run(parse()) else 0)
