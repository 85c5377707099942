"""Run many streams of every kind, then inject one fault after another under that load.

    scripts/soak.sh --minutes 60        # with its own shared memory and disk, so that they can be filled
    scripts/soak.sh --load live         # live sessions with a small random Moshi (`live.py`)
    scripts/soak.sh --idle              # faults while no request is in flight

First, every request of the load (`load.py`) is sent on its own, and its answer becomes the reference. Then `--streams`
clients send randomly chosen requests and read the answers in several ways. Every answer must equal its reference or be
an error, and must not be late (`--limit-s`). Memory is monitored. Afterwards, threads, descriptors, shared memory and
the server's own metrics must return to the values of an idle server. Then each fault in `faults.py` is injected while
clients send requests. One line of JSON is appended to `--out`. If there are findings, they are printed, and the exit
status is 1.
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

from benchmarks.chaos import checks, live, load
from benchmarks.chaos.checks import IDLE_S, Follower, describe
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
from benchmarks.chaos.load import Answer, Ask, Outcomes, Servers, Streams, take_references
from benchmarks.harness import Launch, append_result, command_line, free_ports, served_processes, stop_on_sigterm

STUBS = ("preprocessor", "language_model", "acoustic_decoder")
STOPPED = ("proxy", "stretto_gateway", "tritonserver", *STUBS, "engine", LAUNCHER)
JUMPS = (3600.0, -3600.0)
FRONT_ENDS = ("proxy", "stretto_gateway")
UNPROBED = ("malformed", "upload")  # kinds of request that need less of the server
KINDS = ("kill", "stop", "front-end", "shared-memory", "disk", "disk-kill", "clock")
# seconds of load before a fault, and after the server has recovered
SETTLE_S = 2.0
AFTERWARDS_S = 5.0


class Soak:
    """Soak test of one launcher."""

    def __init__(self, launch: Launch, arguments: argparse.Namespace):
        self._launch = launch
        self._arguments = arguments
        kinds = live if arguments.load == "live" else load
        self._asks: list[Ask] = kinds.make_asks(arguments.seed)
        self._kinds = kinds.KINDS
        self._references: dict[str, Answer] = {}
        self._servers: Servers = {"grpc": launch.address, "gateway": f"localhost:{launch.gateway}"}
        self.wrong: list[str] = []

    async def take_references(self) -> None:
        """Send each request alone; raise RuntimeError if two answers differ."""
        self._references = await take_references(self._servers, self._asks, self._arguments.limit_s)

    async def calm(self) -> dict[str, Any]:
        """Run the load without faults and return its record."""
        arguments = self._arguments
        warmed = self._streams(seed=-1)
        warmed.start(arguments.streams)  # starts every thread of every pool, and grows every buffer
        await warmed.stop()
        await asyncio.sleep(IDLE_S)
        before = checks.look(self._launch.metrics)
        follower = Follower(os.getpid())
        first = follower.look()
        streams = self._streams(seed=0)
        streams.start(arguments.streams)
        until_s = time.monotonic() + 60 * arguments.minutes
        while time.monotonic() < until_s:
            await asyncio.sleep(arguments.interval_s)
            follower.look()
        await streams.stop()
        await asyncio.sleep(IDLE_S)
        last = follower.look()
        after = checks.look(self._launch.metrics)
        processes = describe(follower, arguments.warm_up_minutes, first, last)
        wrong = checks.of_calm(streams.outcomes) + checks.left_over(before, after)
        wrong += checks.of_memory(processes, arguments.minutes - arguments.warm_up_minutes)
        self.wrong += wrong
        return {
            "minutes": arguments.minutes,
            "warm_up_minutes": arguments.warm_up_minutes,
            "processes": processes,
            "outcomes": outcomes_record(streams.outcomes),
            "files": [before.files, after.files],
            "wrong": wrong,
        }

    async def strike(self, faults: Sequence[Fault]) -> list[dict[str, Any]]:
        """Run each fault under load and return their records; check once at the end for resources left over."""
        records = []
        before = checks.look(self._launch.metrics)
        for number, fault in enumerate(faults):
            records.append(await self._strike_one(fault, seed=number + 1))
            print(f"chaos: {fault.name}: {records[-1]}", file=sys.stderr, flush=True)
        await asyncio.sleep(IDLE_S)
        self.wrong += checks.left_over(before, checks.look(self._launch.metrics))
        return records

    async def _strike_one(self, fault: Fault, seed: int) -> dict[str, Any]:
        streams = self._streams(seed)
        streams.start(0 if self._arguments.idle else self._arguments.streams)
        await asyncio.sleep(SETTLE_S)
        skipped = None
        begun = time.monotonic()
        try:
            await fault.strike(self._launch)
        except Skipped as reason:
            skipped = str(reason)
        except (TimeoutError, Ended) as error:
            self.wrong.append(f"{fault.name}: {error}")
        right_s_by_kind = await self._until_right(begun)
        times_s = right_s_by_kind.values()
        right_s = None if None in times_s else max(filter(None, times_s), default=0.0)
        await asyncio.sleep(AFTERWARDS_S)
        await streams.stop()
        wrong = [f"{fault.name}: {finding}" for finding in checks.of_fault(streams.outcomes, right_s)]
        self.wrong += wrong
        record = {
            "fault": fault.name,
            "right_s": right_s,
            "right_s_by_kind": right_s_by_kind,
            "load": os.getloadavg()[0],
            "outcomes": outcomes_record(streams.outcomes),
            "wrong": wrong,
        }
        return record if skipped is None else {"fault": fault.name, "skipped": skipped}

    async def _until_right(self, begun: float) -> dict[str, float | None]:
        """Return the seconds until each kind of request is answered correctly, or None after the time limit."""
        probes = {ask.kind: ask for ask in reversed(self._asks) if ask.kind not in UNPROBED}

        async def right_s(ask: Ask) -> float | None:
            while time.monotonic() - begun < self._arguments.limit_s:
                if await self._streams(seed=0).is_right(ask):
                    return round(time.monotonic() - begun, 2)
                await asyncio.sleep(0.2)
            return None

        times_s = await asyncio.gather(*map(right_s, probes.values()))
        return dict(zip(probes, times_s, strict=True))

    def _streams(self, seed: int) -> Streams:
        arguments = self._arguments
        seed += arguments.seed
        return Streams(self._servers, self._asks, self._references, seed, arguments.limit_s, self._kinds)


def outcomes_record(outcomes: Outcomes) -> dict[str, Any]:
    return {"verdicts": dict(sorted(outcomes.verdicts.items())), "errors": dict(outcomes.errors.most_common())}


def faults_of(kinds: Sequence[str], folder: Path, killed: Sequence[str] = ()) -> list[Fault]:
    """Return the faults of the given kinds, except clock faults. The launcher is killed last.

    Args:
        killed: Names of the processes to kill, in this order; empty for all.
    """
    # Only the launcher's descendants: this process has a resource tracker of its own, which nothing would replace.
    names = [*served_processes(served_processes().get(LAUNCHER)), LAUNCHER]
    faults: dict[str, list[Fault]] = {
        "stop": [Stop(name) for name in STOPPED if name not in FRONT_ENDS],
        "front-end": [Replaced(name) for name in FRONT_ENDS],
        "shared-memory": [Fill(Path("/dev/shm"))],
        "disk": [Fill(folder)],
        "disk-kill": [FullDiskKill(folder, "language_model")],
        "kill": [Kill(name) for name in killed or names],
    }
    return [fault for kind, of_kind in faults.items() if kind in kinds for fault in of_kind]


def run(arguments: argparse.Namespace) -> int:
    """Run the load and the faults; return the number of findings."""
    record: dict[str, Any] = {"streams": arguments.streams, "seed": arguments.seed, "load": arguments.load}
    record["idle"] = arguments.idle
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, tempfile.TemporaryDirectory() as models:
        if arguments.load == "live":
            arguments.model_repository = live.write_repository(Path(models))
        launch = Launch(arguments.model_repository, Path(folder), gateway=free_ports(1)[0])
        soak = Soak(launch, arguments)
        launch.start()
        try:
            asyncio.run(soak.take_references())
            record["calm"] = asyncio.run(soak.calm())
            print(f"chaos: the load alone: {record['calm']}", file=sys.stderr, flush=True)
            record["faults"] = asyncio.run(soak.strike(faults_of(arguments.faults, Path(folder), arguments.killed)))
        finally:
            launch.stop()
        wrong += soak.wrong
        if "clock" in arguments.faults:
            record["faults"] += jump(Path(folder), arguments, wrong)
    record["wrong"] = wrong
    append_result(arguments.out, "chaos", record)
    print(f"chaos: {len(wrong)} findings", *wrong, sep="\n- ", file=sys.stderr)
    return len(wrong)


def jump(folder: Path, arguments: argparse.Namespace, wrong: list[str]) -> list[dict[str, Any]]:
    """Start a server with a clock of its own, inject the clock faults, and return their records."""
    (folder / "clocked").mkdir()
    environment = clock_environment(folder / "clocked")
    launch = Launch(arguments.model_repository, folder / "clocked", environment=environment, gateway=free_ports(1)[0])
    soak = Soak(launch, arguments)
    faults = [Jump(seconds) for seconds in JUMPS]
    launch.start()
    try:
        asyncio.run(soak.take_references())
        return asyncio.run(soak.strike(faults))
    finally:
        launch.stop()
        wrong += soak.wrong


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_line(
        __doc__,
        "chaos",
        serves=True,
        minutes=(5.0, "minutes of load before the first fault"),
        warm_up_minutes=(float, "warm-up minutes that memory slopes leave out; default: a third of --minutes"),
        streams=(64, "number of simultaneous clients"),
        limit_s=(240.0, "seconds after which a waiting client counts as hung"),
        interval_s=(5.0, "seconds between two readings of the processes"),
        seed=(0, "seed of requests and readers"),
        folder=(Path, "folder for logs, which the fault `disk` fills; used only by this run"),
    )
    add = parser.add_argument
    add("--load", choices=("bundled", "live"), default="bundled", help="the bundled model's tasks, or live sessions")
    add("--idle", action="store_true", help="inject the faults while no request is in flight")
    add(
        "--faults",
        nargs="*",
        choices=KINDS,
        default=list(KINDS),
        help="kinds of faults to inject; none: only the load runs",
    )
    add("--killed", nargs="+", default=(), metavar="PROCESS", help="only processes to kill; a name may be repeated")
    arguments = parser.parse_args(argv)
    if arguments.warm_up_minutes is None:
        arguments.warm_up_minutes = arguments.minutes / 3
    return arguments


if __name__ == "__main__":
    stop_on_sigterm()
    sys.exit(1 if run(parse()) else 0)
