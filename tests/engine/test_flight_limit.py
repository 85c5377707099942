"""The limit on replies in flight that keeps first frames in time: the rule by hand, and on a simulated machine."""

import random
from dataclasses import dataclass

import numpy as np
import pytest

from stretto.engine.permits import MIN_LIMIT, AdmissionRecord, FlightLimit


def seen(limit: FlightLimit, num_sequences: int, in_flight: int, first_frame_s: float) -> float:
    limit.record(limit.enter(num_sequences, in_flight), first_frame_s)
    return limit.value


def test_late_reply_cuts_the_flight_limit_by_at_most_half() -> None:
    assert seen(FlightLimit(1.0, 80), 2, 40, 1.25) == pytest.approx(64)
    assert seen(FlightLimit(1.0, 80), 2, 80, 9.0) == 40


def test_unused_flight_limit_falls_gently_to_twice_the_use() -> None:
    limit = FlightLimit(1.0, 80)
    assert seen(limit, 2, 12, 9.0) == pytest.approx(77.6)
    for _ in range(100):
        seen(limit, 2, 12, 9.0)
        if limit.value == 24:
            break
    assert limit.value == 24


def test_requests_admitted_before_a_cut_do_not_change_the_limit() -> None:
    limit = FlightLimit(1.0, 80)
    early = [limit.enter(2, in_flight) for in_flight in (46, 48, 50)]
    for entry in early:
        limit.record(entry, 2.0)
    assert limit.value == 40
    limit.record(early[0], 0.1)
    assert limit.value == 40


def test_timely_replies_raise_the_flight_limit_additively() -> None:
    limit = FlightLimit(1.0, 80)
    limit.value = 16.0
    for _ in range(8):
        seen(limit, 2, 16, 0.9)
    assert 17.5 < limit.value < 18


def test_flight_limit_rises_only_near_capacity_and_up_to_its_maximum() -> None:
    limit = FlightLimit(1.0, 20)
    limit.value = 16.0
    assert seen(limit, 2, 7, 0.1) == 16
    for _ in range(100):
        seen(limit, 2, 16, 0.1)
    assert limit.value == 20


def test_flight_limit_never_falls_below_twice_the_current_use() -> None:
    limit = FlightLimit(1.0, 80)
    for _ in range(500):
        seen(limit, 2, 2, 60.0)
    assert limit.value == 4


def test_flight_limit_has_a_minimum() -> None:
    limit = FlightLimit(1.0, 80)
    for _ in range(20):
        seen(limit, 1, int(limit.value), 1e6)
    assert limit.value == MIN_LIMIT
    assert seen(FlightLimit(1.0, 3), 1, 3, 1e6) == 3


def test_flight_limit_is_found_from_an_infinite_start() -> None:
    limit = FlightLimit(1.0, float("inf"))
    for _ in range(200):
        seen(limit, 2, 40, 2.0)
    assert limit.value < 80


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
