"""The limit on replies in flight that keeps first frames in time: the rule by hand, and on a simulated machine."""

import random
from dataclasses import dataclass

import numpy as np
import pytest

from stretto.engine.permits import MIN_LIMIT, AdmissionRecord, FlightLimit


def seen(limit: FlightLimit, num_sequences: int, in_flight: int, first_frame_s: float) -> float:
    limit.record(limit.enter(num_sequences, in_flight), first_frame_s)
    return limit.value


INFINITE = float("inf")


@pytest.mark.parametrize(
    ("most", "start", "in_flight", "first_s", "times", "expected"),
    [
        pytest.param(80, 80, 40, 1.25, 1, (64, 64), id="late: cut"),
        pytest.param(80, 80, 80, 9.0, 1, (40, 40), id="very late: halved"),
        pytest.param(80, 80, 12, 9.0, 1, (77.6, 77.6), id="late and unused: cut gently"),
        pytest.param(80, 80, 12, 9.0, 40, (24, 24), id="late and unused: down to twice the use"),
        pytest.param(80, 80, 2, 60.0, 500, (4, 4), id="very late and unused: down to twice the use"),
        pytest.param(80, 16, 16, 0.9, 8, (17.5, 18), id="timely: raised additively"),
        pytest.param(20, 16, 7, 0.1, 1, (16, 16), id="timely and unused: kept"),
        pytest.param(20, 16, 16, 0.1, 100, (20, 20), id="timely: up to the maximum"),
        pytest.param(INFINITE, INFINITE, 40, 2.0, 200, (4, 4), id="late: found from an infinite start"),
    ],
)
def test_first_frames_move_the_flight_limit(
    most: float, start: float, in_flight: int, first_s: float, times: int, expected: tuple[float, float]
) -> None:
    limit = FlightLimit(1.0, most)
    limit.value = min(start, limit.value)
    for _ in range(times):
        seen(limit, 2, in_flight, first_s)
    low, high = expected
    assert low == pytest.approx(limit.value) if low == high else low < limit.value < high


def test_requests_admitted_before_a_cut_do_not_change_the_limit() -> None:
    limit = FlightLimit(1.0, 80)
    early = [limit.enter(2, in_flight) for in_flight in (46, 48, 50)]
    for entry in early:
        limit.record(entry, 2.0)
    assert limit.value == 40
    limit.record(early[0], 0.1)
    assert limit.value == 40


def test_flight_limit_has_a_minimum() -> None:
    limit = FlightLimit(1.0, 80)
    for _ in range(20):
        seen(limit, 1, int(limit.value), 1e6)
    assert limit.value == MIN_LIMIT
    assert seen(FlightLimit(1.0, 3), 1, 3, 1e6) == 3


@dataclass(eq=False)
class Reply:
    entry: AdmissionRecord
    came_s: float
    num_rows: int = 0


ROWS_TO_FIRST, ROWS = 8, 60
STEP_S, SEQUENCE_S = 0.015, 0.003  # duration of a step, and of each sequence in it
NOISE = 0.8  # standard deviation of the logarithm of a step's duration


def served(rate: float, most: float, target_s: float, seconds: float = 400.0) -> tuple[np.ndarray, int]:
    """Return the seconds to the first frame of random replies, `rate` per second, and the number of refusals.

    In each step, all replies in flight generate a row. Step times are lognormal. The first half of replies is left out,
    because the limit is still being adapted.
    """
    arrivals = random.Random(7)
    limit, now, due = FlightLimit(target_s, most), 0.0, arrivals.expovariate(rate)
    running: list[Reply] = []
    firsts, num_refused = [], 0
    while now < seconds:
        while due <= now:
            num = 1 + (arrivals.random() < 2 / 3)
            taken = sum(reply.entry.num_sequences for reply in running)
            if taken and taken + num > limit.value:
                num_refused += due > seconds / 2
            else:
                running.append(Reply(limit.enter(num, taken + num), due))
            due += arrivals.expovariate(rate)
        now += arrivals.lognormvariate(0.0, NOISE) * (
            STEP_S + SEQUENCE_S * sum(reply.entry.num_sequences for reply in running)
        )
        for reply in running:
            reply.num_rows += 1
            if reply.num_rows == ROWS_TO_FIRST:
                limit.record(reply.entry, now - reply.came_s)
                if reply.came_s > seconds / 2:
                    firsts.append(now - reply.came_s)
        running = [reply for reply in running if reply.num_rows < ROWS]
    return np.array(firsts), num_refused


@pytest.mark.parametrize(("target_s", "late"), [(1.0, 0.01), (0.7, 0.05)])
def test_flight_limit_refuses_few_far_below_saturation(target_s: float, late: float) -> None:
    firsts, num_refused = served(rate=1.0, most=200, target_s=target_s)
    assert num_refused <= 0.02 * len(firsts)
    assert (firsts > target_s).mean() > late


@pytest.mark.parametrize("most", [120, 400, float("inf")])
@pytest.mark.parametrize("rate", [6.0, 9.0, 18.0])
def test_flight_limit_under_overload_keeps_latency_and_throughput(rate: float, most: float) -> None:
    """It makes 2.4 replies a second at the bound that the target allows on average, 36 sequences."""
    firsts, num_refused = served(rate, most, target_s=1.0)
    assert num_refused > 100
    assert np.percentile(firsts, 80) < 1.0
    assert np.percentile(firsts, 95) < 1.3
    assert len(firsts) / 200 > 1.8
    unbounded, _ = served(rate, 120, target_s=1e9)
    assert np.percentile(unbounded, 50) > 2.5


def test_flight_limit_adapts_when_the_machine_becomes_faster() -> None:
    limit = FlightLimit(1.0, 80)
    for in_flight in (80, 40, 20):
        seen(limit, 2, in_flight, 2.0)
    low = limit.value
    for _ in range(200):
        seen(limit, 2, int(limit.value), 0.03 * limit.value)
    assert low < 16 < 25 < limit.value < 34
