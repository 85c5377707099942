"""Findings of a soak test: growing memory, resources left over, and wrong answers."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.chaos.load import Outcomes, Verdict
from benchmarks.harness import OPENER, Usage, read_usage, served_processes, shared_files, slope_mb_per_min
from stretto.launcher.server import MAX_MODEL_RESTARTS

IDLE_S = 20.0  # until resources that outlast a request are released
COLUMNS = ("rss_mb", "pss_mb", "uss_mb")


class Follower:
    """Repeated measurements of the resource usage of all descendants of a process."""

    def __init__(self, root: int):
        self._begun = time.monotonic()
        self.pids = served_processes(root) | {"client": os.getpid()}
        self.usages: dict[str, list[Usage]] = {name: [] for name in self.pids}

    def look(self) -> dict[str, Usage]:
        """Record and return the current usage of the processes; raise RuntimeError if one has ended."""
        at_s = time.monotonic() - self._begun
        seen = {}
        for name, pid in self.pids.items():
            usage = read_usage(pid, at_s)
            if usage is None:
                raise RuntimeError(f"{name} (process {pid}) ended after {at_s:.0f} s")
            seen[name] = usage
            self.usages[name].append(usage)
        return seen


def describe(
    follower: Follower, warm_up_min: float, before: dict[str, Usage], after: dict[str, Usage]
) -> dict[str, dict[str, Any]]:
    """Return each process's memory at the start, after warm-up and at the end, its slopes, and its idle resources."""
    processes = {}
    for name, usages in follower.usages.items():
        steady = [usage for usage in usages if usage.at_s >= 60 * warm_up_min]
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
    return processes


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
NEVER = ("unguided_total",)  # counts events that only a bug can cause
SERVER = "tritonserver"
REGION = "stretto_launch_"
ABANDONED_THREADS = 35  # per model instance in Triton's Python backend: a pool of 32, and three more
# Permitted extra resources per process: the threads of an event loop's default pool, which start when calls overlap and
# never end, and descriptors of connections that are being closed.
SLACK = {"threads": min(32, (os.cpu_count() or 1) + 4), "descriptors": 4}


@dataclass(frozen=True, slots=True)
class Held:
    """Resources of an idle server.

    Attributes:
        files: Number of files in shared memory.
        gauges: Metrics that are zero on an idle server, and counters of events that must never occur.
        abandoned: Model instances that Triton keeps although their stubs died with requests in flight. The launcher
            bounds their number (`TritonServer.restart_models`). Their resources do not count as findings.
    """

    threads: Mapping[str, int]
    descriptors: Mapping[str, int]
    files: int
    gauges: Mapping[str, float]
    abandoned: int = 0


def look(metrics_port: int, root: int | None = None) -> Held:
    """Return the current resources of the processes below `root` or, by default, below this process."""
    pids = served_processes(root)
    usages = {name: usage for name, pid in pids.items() if (usage := read_usage(pid, 0.0)) is not None}
    mapped = shared_files(pids.values())
    stubs = shared_files(pid for name, pid in pids.items() if name != SERVER)
    server = shared_files(pid for name, pid in pids.items() if name == SERVER)
    with OPENER.open(f"http://localhost:{metrics_port}/metrics", timeout=60) as page:
        gauges = read_gauges(page.read().decode())
    return Held(
        {name: usage.threads for name, usage in usages.items()},
        {name: usage.descriptors for name, usage in usages.items()},
        len(mapped),
        gauges,
        sum(name.startswith(REGION) for name in server.keys() - stubs.keys()),
    )


def read_gauges(page: str) -> dict[str, float]:
    """Return the metrics that must be zero; raise KeyError if one is missing."""
    lines = [line.rpartition(" ") for line in page.splitlines() if line.startswith("stretto_")]
    values = {name.partition("{")[0].removeprefix("stretto_"): float(value) for name, _, value in lines}
    return {name: values[name] for name in (*IDLE_GAUGES, *NEVER)}


def left_over(before: Held, after: Held) -> list[str]:
    """Return a sentence for each resource that was not released."""
    findings = [f"{name} is {value:g}, not 0" for name, value in after.gauges.items() if value]
    abandoned = max(0, after.abandoned - before.abandoned)
    for what, old, new, of_instance in (
        ("threads", before.threads, after.threads, ABANDONED_THREADS),
        ("descriptors", before.descriptors, after.descriptors, 1),
    ):
        findings += [
            f"{name} has {new[name]} {what}, {old[name]} before"
            for name in sorted(old.keys() & new.keys())
            if new[name] > old[name] + SLACK[what] + of_instance * abandoned * (name == SERVER)
        ]
    findings += [f"{name} is missing" for name in sorted(before.threads.keys() - after.threads.keys())]
    findings += [f"there is a new process, {name}" for name in sorted(after.threads.keys() - before.threads.keys())]
    if after.files > before.files + abandoned:
        findings.append(f"{after.files} files in shared memory, {before.files} before")
    if after.abandoned > MAX_MODEL_RESTARTS:
        findings.append(f"Triton keeps {after.abandoned} models whose stubs have died")
    return findings


MAX_SLOPE = 1.0  # MB a minute
LEAST_STEADY_MIN = 15.0  # a shorter time does not distinguish caches that fill from leaks
CLIENT = "client"  # this process, which stores the answers
FULL = "ServerFull"  # the only error that is expected without faults


def of_calm(outcomes: Outcomes) -> list[str]:
    """Return the findings about answers without faults."""
    findings = list(outcomes.bad)
    findings += [
        f"{count} times: {message}" for message, count in outcomes.errors.items() if not message.startswith(f"{FULL}: ")
    ]
    if not outcomes.num(Verdict.RIGHT):
        findings.append("no answer was correct, so nothing has been tested")
    return findings


def of_fault(outcomes: Outcomes, right_s: float | None) -> list[str]:
    """Return the findings about answers during a fault. `right_s` is None if no answer was correct in time."""
    return outcomes.bad + (["the server did not answer correctly again"] if right_s is None else [])


def of_memory(processes: Mapping[str, Mapping[str, Any]], steady_min: float) -> list[str]:
    """Return the findings about memory growth; empty if `steady_min` minutes are too short to judge."""
    if steady_min < LEAST_STEADY_MIN:
        return []
    return [
        f"{name} grows by {figures['slope_rss_mb_per_min']:g} MB a minute"
        for name, figures in processes.items()
        if name != CLIENT and figures["slope_rss_mb_per_min"] >= MAX_SLOPE
    ]
