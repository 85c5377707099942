"""What is wrong, if anything, about a run: sentences, none for a server that is as it should be."""

from collections.abc import Mapping
from typing import Any

from benchmarks.chaos.answers import Verdict
from benchmarks.chaos.streams import Outcomes

MAX_SLOPE = 1.0  # MB a minute
LEAST_STEADY_MIN = 15.0  # a shorter time after the warm-up tells caches that fill from memory that is lost
CLIENT = "client"  # this process, which keeps the answers
FULL = "ServerFull"  # what a calm server may answer, and no other error


def of_calm(outcomes: Outcomes) -> list[str]:
    """Of answers while nothing was done to the server."""
    found = list(outcomes.bad)
    found += [f"{count} times: {said}" for said, count in outcomes.errors.items() if not said.startswith(f"{FULL}: ")]
    if not outcomes.num(Verdict.RIGHT):
        found.append("no answer was right: nothing has been tested")
    return found


def of_fault(outcomes: Outcomes, right_s: float | None) -> list[str]:
    """Of answers while something was done. right_s: seconds until a request was answered right; None: never."""
    return outcomes.bad + (["the server has not become right again"] if right_s is None else [])


def of_memory(processes: Mapping[str, Mapping[str, Any]], steady_min: float) -> list[str]:
    """Of the slopes of each process's memory over so many minutes; none where these are too few to tell."""
    if steady_min < LEAST_STEADY_MIN:
        return []
    return [
        f"{name} grows by {figures['slope_rss_mb_per_min']:g} MB a minute"
        for name, figures in processes.items()
        if name != CLIENT and figures["slope_rss_mb_per_min"] >= MAX_SLOPE
    ]
