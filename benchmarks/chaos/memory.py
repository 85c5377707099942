"""What each process of a server uses under load, looked at again and again, and whether its memory grows."""

import os
import time
from typing import Any

from benchmarks.process_watch import Usage, read_usage, served_processes, slope_mb_per_min

IDLE_S = 20.0  # until what a request leaves behind for a while is gone
COLUMNS = ("rss_mb", "pss_mb", "uss_mb")


class Follower:
    """Looks at the processes below one, again and again."""

    def __init__(self, root: int):
        self._begun = time.monotonic()
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
        return seen


def describe(
    follower: Follower, warm_up_min: float, before: dict[str, Usage], after: dict[str, Usage]
) -> dict[str, dict[str, Any]]:
    """Each process: memory at the start, after the warm-up and at the end, slopes between these, what it holds idle."""
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
