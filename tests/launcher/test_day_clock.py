"""Steps of the wall clock are distinguished from elapsed time."""

from types import SimpleNamespace

import pytest

from stretto.launcher.triton_24_10 import clock as clock_module
from stretto.launcher.triton_24_10.clock import ClockWatch


def test_only_a_large_backward_clock_step_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    day_s, up_s = 1_000_000.0, 50.0
    monkeypatch.setattr(clock_module, "time", SimpleNamespace(time=lambda: day_s, monotonic=lambda: up_s))
    clock = ClockWatch()
    seen = []
    for passed_s, step_s in ((90.0, 0.0), (0.25, -3600.0), (500.0, 0.0), (2.0, 3600.0), (0.25, -60.0), (0.25, -60.5)):
        up_s += passed_s
        day_s += passed_s + step_s
        seen.append(str(clock.fault() or ""))
    assert seen == ["", "the clock was set back by 3600 s", "", "", "", "the clock was set back by 60 s"]
