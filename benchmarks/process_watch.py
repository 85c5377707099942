"""What /proc says that a process uses: memory, processor time, threads, descriptors; and how its memory grows."""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stretto.launcher.processes import GONE, Process, descendants

PROC, SHARED = Path("/proc"), "/dev/shm/"
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process uses at a moment.

    rss_mb: in memory, in MB of 2^20 bytes; pss_mb: with what is shared divided among those that share it; uss_mb: what
    is shared with nobody. cpu_s: processor time since its start.
    """

    at_s: float
    rss_mb: float
    pss_mb: float
    uss_mb: float
    cpu_s: float
    threads: int
    descriptors: int


def read_usage(pid: int, at_s: float) -> Usage | None:
    """The usage now; None for a process that has ended."""
    with suppress(*GONE):
        kb = dict.fromkeys(("Rss", "Pss", "Private_Clean", "Private_Dirty"), 0)
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]:
            name, _, value = line.partition(":")
            if name in kb:
                kb[name] = int(value.split()[0])
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return Usage(
            at_s=at_s,
            rss_mb=kb["Rss"] / 1024,
            pss_mb=kb["Pss"] / 1024,
            uss_mb=(kb["Private_Clean"] + kb["Private_Dirty"]) / 1024,
            cpu_s=(int(fields[11]) + int(fields[12])) * TICK_S,
            threads=int(fields[17]),
            descriptors=len(os.listdir(PROC / str(pid) / "fd")),
        )
    return None


def name_of(process: Process) -> str:
    """What a process of a served ensemble is: the server, one of its models' stubs, the engine, or a module of ours."""
    words = process.command.split()
    if process.name.startswith("triton_python_b"):
        return next((Path(word).parents[1].name for word in words if word.endswith("/model.py")), "stub")
    if process.command.startswith("VLLM::"):
        return "engine"
    if process.is_tracker:
        return "resource tracker"
    if "-m" in words[:-1]:
        module = words[words.index("-m") + 1]
        return "launcher" if module == "stretto" else module.rpartition(".")[2]
    return process.name


def served_processes(root: int) -> dict[str, int]:
    """The pids below `root`, each by what it is; a number behind the name where there are several."""
    found: dict[str, int] = {}
    for process in sorted(descendants(root), key=lambda process: process.pid):
        name = kind = name_of(process)
        number = 1
        while name in found:
            number += 1
            name = f"{kind} {number}"
        found[name] = process.pid
    return found


def cpu_s(pids: Mapping[str, int]) -> dict[str, float]:
    """The processor time so far of each process by its name; RuntimeError where one has ended."""
    seen = {}
    for name, pid in pids.items():
        usage = read_usage(pid, 0.0)
        if usage is None:
            raise RuntimeError(f"{name} (process {pid}) has ended")
        seen[name] = usage.cpu_s
    return seen


def shared_files(pids: Iterable[int]) -> dict[str, int]:
    """The bytes of each file in shared memory that one of the processes has mapped."""
    found = {}
    for pid in pids:
        with suppress(*GONE):
            for line in (PROC / str(pid) / "maps").read_text().splitlines():
                words = line.split(maxsplit=5)
                if len(words) > 5 and words[5].startswith(SHARED):
                    path = Path(words[5])
                    found[path.name] = path.stat().st_size if path.exists() else 0
    return found


def slope_mb_per_min(usages: Sequence[Usage], column: str) -> float:
    """The slope of the straight line through one column, by least squares."""
    times = np.array([usage.at_s for usage in usages]) / 60
    values = np.array([getattr(usage, column) for usage in usages])
    times -= times.mean()
    return float((times * (values - values.mean())).sum() / max((times**2).sum(), 1e-9))
