"""What a server holds when nobody asks it for anything, and what of that is more than before."""

import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.process_watch import read_usage, served_processes, shared_files

SHARED_MEMORY = Path("/dev/shm")
IDLE_GAUGES = (
    "active_utterances",
    "pairs",
    "running_requests",
    "waiting_requests",
    "running_pairs",
    "held_pairs",
    "kv_usage",
    "replies_without_words",
    "decoder_waiting_chunks",
)
NEVER = ("unguided_total",)  # a counter that says of a bug
SLACK = 4  # threads and descriptors that a process may have more: a pool's thread, a connection that is being closed


@dataclass(frozen=True, slots=True)
class Held:
    """What an idle server has. threads, descriptors: of each process; files: in shared memory; shared_mb: their size;
    gauges: those that are zero when nobody asks, and counters of what must never be."""

    threads: Mapping[str, int]
    descriptors: Mapping[str, int]
    files: int
    shared_mb: float
    gauges: Mapping[str, float]


def look(metrics_port: int, root: int | None = None) -> Held:
    """What the processes below `root`, or below this one, hold now."""
    pids = served_processes(os.getpid() if root is None else root)
    usages = {name: usage for name, pid in pids.items() if (usage := read_usage(pid, 0.0)) is not None}
    mapped = shared_files(pids.values())
    with urllib.request.urlopen(f"http://localhost:{metrics_port}/metrics", timeout=60) as page:
        gauges = read_gauges(page.read().decode())
    return Held(
        {name: usage.threads for name, usage in usages.items()},
        {name: usage.descriptors for name, usage in usages.items()},
        len(mapped),
        round(sum(mapped.values()) / 2**20, 2),
        gauges,
    )


def read_gauges(page: str) -> dict[str, float]:
    """Of a page of metrics, what must be zero; KeyError where one of them is not there."""
    lines = [line.rpartition(" ") for line in page.splitlines() if line.startswith("stretto_")]
    found = {name.partition("{")[0].removeprefix("stretto_"): float(value) for name, _, value in lines}
    return {name: found[name] for name in (*IDLE_GAUGES, *NEVER)}


def left_over(before: Held, after: Held) -> list[str]:
    """What is there that should not be, a sentence each."""
    found = [f"{name} is {value:g}, not 0" for name, value in after.gauges.items() if value]
    for what, old, new in (
        ("threads", before.threads, after.threads),
        ("descriptors", before.descriptors, after.descriptors),
    ):
        found += [
            f"{name} has {new[name]} {what}, {old[name]} before"
            for name in sorted(old.keys() & new.keys())
            if new[name] > old[name] + SLACK
        ]
    found += [f"there is no {name}" for name in sorted(before.threads.keys() - after.threads.keys())]
    found += [f"there is another process, {name}" for name in sorted(after.threads.keys() - before.threads.keys())]
    if after.files > before.files:
        found.append(f"{after.files} files in shared memory, {before.files} before")
    return found
