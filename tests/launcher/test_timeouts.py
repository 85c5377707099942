"""Delays between restarts grow, and reset after a healthy period."""

from types import SimpleNamespace

import pytest

from stretto.launcher import timeouts
from stretto.launcher.timeouts import MAX_DELAY_S, BackOff, slowness


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [1000.0]
    monkeypatch.setattr(timeouts, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    return clock


def test_back_off_delay_grows_to_a_limit(now: list[float]) -> None:
    back_off = BackOff()
    delays = [back_off.next_delay_s() for _ in range(1000)]
    assert delays[:5] == [0.0, 0.5, 1.0, 2.0, 4.0]
    assert set(delays[8:]) == {MAX_DELAY_S}


def test_back_off_resets_after_a_healthy_period(now: list[float]) -> None:
    back_off = BackOff()
    for _ in range(5):
        back_off.next_delay_s()
    back_off.note_ready()
    now[0] += timeouts.HEALTHY_S - 1
    assert back_off.next_delay_s() == 8.0
    back_off.note_ready()
    now[0] += timeouts.HEALTHY_S
    assert back_off.next_delay_s() == 0.0


def test_waited_backoff_delays_are_not_repeated(now: list[float]) -> None:
    back_off = BackOff()
    delays = [back_off.next_delay_s() for _ in range(4)]
    back_off.note_waited()
    assert [*delays, back_off.next_delay_s(), back_off.next_delay_s()] == [0.0, 0.5, 1.0, 2.0, 0.0, 4.0]
    back_off.note_waited()
    back_off.note_ready()
    assert back_off.next_delay_s() == 8.0


def test_slowness_follows_load_average_per_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(timeouts.os, "getloadavg", lambda: (20.0, 0.0, 0.0))
    assert slowness() == 10.0
    monkeypatch.setattr(timeouts.os, "getloadavg", lambda: (0.1, 0.0, 0.0))
    assert slowness() == 1.0
