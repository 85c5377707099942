"""What a server holds when nobody asks it for anything, and what of that is more than before."""

import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.process_watch import read_usage, served_processes, shared_files
from stretto.launcher.server import MAX_MODEL_RESTARTS

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
SERVER, REGION = "tritonserver", "stretto_launch_"
ABANDONED_THREADS = 35  # of a model instance in Triton's Python backend: 32 of its pool, and three
SLACK = 4  # threads and descriptors that a process may have more: a pool's thread, a connection that is being closed


@dataclass(frozen=True, slots=True)
class Held:
    """What an idle server has. threads, descriptors: of each process; files: in shared memory; shared_mb: their size;
    gauges: those that are zero when nobody asks, and counters of what must never be. abandoned: model instances that
    Triton keeps although their stubs have died: with requests in flight it never frees one. The launcher bounds their
    number (`Server.restart_models`), and what each holds is no finding here."""

    threads: Mapping[str, int]
    descriptors: Mapping[str, int]
    files: int
    shared_mb: float
    gauges: Mapping[str, float]
    abandoned: int = 0


def look(metrics_port: int, root: int | None = None) -> Held:
    """What the processes below `root`, or below this one, hold now."""
    pids = served_processes(os.getpid() if root is None else root)
    usages = {name: usage for name, pid in pids.items() if (usage := read_usage(pid, 0.0)) is not None}
    mapped = shared_files(pids.values())
    stubs = shared_files(pid for name, pid in pids.items() if name != SERVER)
    server = shared_files(pid for name, pid in pids.items() if name == SERVER)
    with urllib.request.urlopen(f"http://localhost:{metrics_port}/metrics", timeout=60) as page:
        gauges = read_gauges(page.read().decode())
    return Held(
        {name: usage.threads for name, usage in usages.items()},
        {name: usage.descriptors for name, usage in usages.items()},
        len(mapped),
        round(sum(mapped.values()) / 2**20, 2),
        gauges,
        sum(name.startswith(REGION) for name in server.keys() - stubs.keys()),
    )


def read_gauges(page: str) -> dict[str, float]:
    """Of a page of metrics, what must be zero; KeyError where one of them is not there."""
    lines = [line.rpartition(" ") for line in page.splitlines() if line.startswith("stretto_")]
    found = {name.partition("{")[0].removeprefix("stretto_"): float(value) for name, _, value in lines}
    return {name: found[name] for name in (*IDLE_GAUGES, *NEVER)}


def left_over(before: Held, after: Held) -> list[str]:
    """What is there that should not be, a sentence each."""
    found = [f"{name} is {value:g}, not 0" for name, value in after.gauges.items() if value]
    abandoned = max(0, after.abandoned - before.abandoned)
    for what, old, new, of_instance in (
        ("threads", before.threads, after.threads, ABANDONED_THREADS),
        ("descriptors", before.descriptors, after.descriptors, 1),
    ):
        found += [
            f"{name} has {new[name]} {what}, {old[name]} before"
            for name in sorted(old.keys() & new.keys())
            if new[name] > old[name] + SLACK + of_instance * abandoned * (name == SERVER)
        ]
    found += [f"there is no {name}" for name in sorted(before.threads.keys() - after.threads.keys())]
    found += [f"there is another process, {name}" for name in sorted(after.threads.keys() - before.threads.keys())]
    if after.files > before.files + abandoned:
        found.append(f"{after.files} files in shared memory, {before.files} before")
    if after.abandoned > MAX_MODEL_RESTARTS:
        found.append(f"Triton keeps {after.abandoned} models whose stubs have died")
    return found
