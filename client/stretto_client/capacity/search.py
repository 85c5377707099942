"""Search for the largest number of streams that a server serves well, in a limited time."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from stretto_client.capacity.levels import DRAIN_S, MOST_LATE, Level, Target, p95_bound

EXPLORING = 0.5  # share of the time for trying levels; the best one is measured in the other half
NUM_TRIED = 20  # requests of a level that is tried: the fewest of which 5 % are one
NUM_MEASURED = 200  # requests of the result
LEAST_S = 3.0  # minimum duration of a measurement
RESOLUTION = 8  # the result is at most one eighth below the largest number

Measure = Callable[[int, Target, float], Awaitable[Level]]
"""Function that measures a level: number of streams, requirements, seconds."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Result of a search.

    Attributes:
        best: Measurement of the largest level without a fault; None if there is none.
        is_measured: False if the time was only enough to try this level.
        first_fault: Smallest level with a fault; None if all levels that were tried had none.
    """

    tried: list[Level]
    best: Level | None
    is_measured: bool
    first_fault: Level | None

    @property
    def is_certain(self) -> bool:
        """True if the 95th percentile of the first audio is below the limit with 95 % confidence."""
        bound = None if self.best is None else p95_bound(self.best.first_audio_s)
        return self.best is not None and bound is not None and bound <= self.best.target.first_audio_s


def next_streams(most_good: int, least_bad: int | None) -> int | None:
    """Return the next number of streams to try; None if the two numbers are near enough.

    `most_good` is the largest number that was served well (0: none was). `least_bad` is the smallest that was not
    (None: all were).
    """
    if least_bad is None:
        return max(1, 2 * most_good)
    if least_bad - most_good <= max(1, most_good // RESOLUTION):
        return None
    return (most_good + least_bad) // 2


async def find_capacity(
    measure: Measure,
    first_audio_s: float,
    seconds: float,
    on_level: Callable[[Level], None],
    clock: Callable[[], float] = time.monotonic,
) -> Capacity:
    """Return the largest number of streams that is served well, measured within `seconds`.

    The number is doubled until it is too large, and then bisected. The largest good one is measured in the remaining
    time, or smaller ones if it turns out to be too large. A level that is only tried may have one gap, so that a single
    disturbance does not end the search. `first_audio_s` is the latest first audio of 95 % of the replies, in seconds
    after the request.
    """
    deadline = clock() + seconds
    exploring_until = clock() + EXPLORING * seconds
    tried = list[Level]()

    trial = Target(first_audio_s, NUM_TRIED, most_gaps=MOST_LATE)
    measurement = Target(first_audio_s, NUM_MEASURED)

    async def run(streams: int, target: Target, limit_s: float) -> Level:
        level = await measure(streams, target, max(LEAST_S, limit_s))
        tried.append(level)
        on_level(level)
        return level

    most_good: Level | None = None
    least_bad: Level | None = None
    while clock() < exploring_until:
        streams = next_streams(most_good.streams if most_good else 0, least_bad.streams if least_bad else None)
        if streams is None:
            break
        level = await run(streams, trial, (exploring_until - clock()) / 2)
        if level.fault() is None:
            most_good = level
        else:
            least_bad = level
    streams = most_good.streams if most_good else 0
    while streams and (left_s := deadline - clock() - DRAIN_S) >= LEAST_S:
        level = await run(streams, measurement, left_s)
        if level.fault() is None:
            return Capacity(tried, level, True, least_bad)
        least_bad = level
        streams -= max(1, streams // RESOLUTION)
    good = [level for level in tried if level.fault() is None and level.streams <= streams]
    best = max(good, key=lambda level: level.streams, default=None)
    return Capacity(tried, best, False, least_bad)
