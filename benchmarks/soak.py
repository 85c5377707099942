"""Does the server's memory grow? An hour of mixed load, the memory of every process followed.

    python -m benchmarks.soak --minutes 60

Requests of all kinds (`soak_load.py`) come at a fixed rate to a server that is started for them. Every few seconds each
process is looked at. The slope of its memory is that of the time after the warm-up, in which caches fill; threads,
descriptors and shared memory are compared before the load and after it, when nothing is asked. One line of JSON.
"""

import argparse
import asyncio
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.process_watch import Usage, read_usage, served_processes, shared_files, slope_mb_per_min
from benchmarks.results_file import append_result
from benchmarks.soak_load import SoakLoad
from benchmarks.temporary_server import command_line, serving, stop_on_sigterm
from stretto_client import SpeechClient

IDLE_S = 20.0  # until what a request leaves behind for a while is gone
MAX_OPEN = 64  # requests at once; more than that are not sent, and counted
COLUMNS = ("rss_mb", "pss_mb", "uss_mb")


class Follower:
    """Looks at the processes below one, again and again."""

    def __init__(self, root: int, samples: Path | None):
        self._begun = time.monotonic()
        self._samples = samples
        self.pids = served_processes(root) | {"client": os.getpid()}
        self.usages: dict[str, list[Usage]] = {name: [] for name in self.pids}

    def look(self) -> dict[str, Usage]:
        """The processes' usage now; RuntimeError where one has ended."""
        at_s = time.monotonic() - self._begun
        seen = {}
        for name, pid in self.pids.items():
            usage = read_usage(pid, at_s)
            if usage is None:
                raise RuntimeError(f"{name} (process {pid}) ended after {at_s:.0f} s")
            seen[name] = usage
            self.usages[name].append(usage)
        if self._samples is not None:
            with self._samples.open("a") as file:
                file.write(json.dumps({name: asdict(usage) for name, usage in seen.items()}) + "\n")
        return seen


async def soak(server: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Load for so many minutes; the record of what grew."""
    load = SoakLoad(arguments.seed)
    async with SpeechClient(server) as client:
        await load.every_kind(client)
        await asyncio.sleep(IDLE_S)
        follower = Follower(os.getpid(), arguments.samples)
        before, files = follower.look(), shared_files(follower.pids.values())
        await _press(load, client, follower, arguments)
        await asyncio.sleep(IDLE_S)
        after = follower.look()
        return describe(follower, arguments, before, after) | {
            "shared_memory": {"before": _sizes(files), "after": _sizes(shared_files(follower.pids.values()))},
            "outcomes": dict(sorted(load.outcomes.items())),
        }


async def _press(load: SoakLoad, client: SpeechClient, follower: Follower, arguments: argparse.Namespace) -> None:
    """Send requests at the rate, and look at the processes at the interval, to the end of the time."""
    begun = time.monotonic()
    end_s, open_tasks = begun + 60 * arguments.minutes, set[asyncio.Task[None]]()
    next_look = begun
    number = 0
    while time.monotonic() < end_s:
        if len(open_tasks) < MAX_OPEN:
            task = asyncio.create_task(load.one(client))
            open_tasks.add(task)
            task.add_done_callback(open_tasks.discard)
        else:
            load.outcomes["not sent"] += 1
        number += 1
        if time.monotonic() >= next_look:
            follower.look()
            next_look += arguments.interval_s
        await asyncio.sleep(max(0.0, begun + number / arguments.rate - time.monotonic()))
    if open_tasks:
        await asyncio.wait(open_tasks, timeout=120)


def describe(
    follower: Follower, arguments: argparse.Namespace, before: dict[str, Usage], after: dict[str, Usage]
) -> dict[str, Any]:
    """Each process: memory at the start, after the warm-up and at the end, slopes, and what it holds when idle."""
    processes = {}
    for name, usages in follower.usages.items():
        steady = [usage for usage in usages if usage.at_s >= 60 * arguments.warm_up_minutes]
        span_s = usages[-1].at_s - usages[0].at_s
        processes[name] = {
            **{
                f"{column}_{when}": round(getattr(usage, column), 1)
                for column in COLUMNS
                for when, usage in (("start", before[name]), ("warm", steady[0]), ("end", after[name]))
            },
            **{f"slope_{column}_per_min": round(slope_mb_per_min(steady, column), 3) for column in COLUMNS},
            "cores": round((usages[-1].cpu_s - usages[0].cpu_s) / span_s, 3),
            "threads": [before[name].threads, after[name].threads],
            "descriptors": [before[name].descriptors, after[name].descriptors],
        }
    return {
        "minutes": arguments.minutes,
        "warm_up_minutes": arguments.warm_up_minutes,
        "rate": arguments.rate,
        "processes": processes,
    }


def _sizes(files: dict[str, int]) -> dict[str, float]:
    return {"files": len(files), "mb": round(sum(files.values()) / 2**20, 2)}


def main(arguments: argparse.Namespace) -> None:
    """Start a server, press it, say what grew."""
    with serving(arguments.model_repository) as server:
        append_result(arguments.out, "soak", asyncio.run(soak(server, arguments)))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, "soak")
    add = parser.add_argument
    add("--minutes", type=float, default=60.0)
    add("--warm-up-minutes", type=float, default=20.0, help="of these minutes, at whose end the slopes begin")
    add("--rate", type=float, default=1.0, help="requests a second: with 1, half a core is busy")
    add("--interval-s", type=float, default=5.0, help="between two looks at the processes")
    add("--seed", type=int, default=0, help="of the requests")
    add("--samples", type=Path, help="a file for every look, as lines of JSON")
    return parser.parse_args()


if __name__ == "__main__":
    stop_on_sigterm()
    main(parse())
