import argparse

import numpy as np
import pytest

from benchmarks.layouts import LAYOUTS
from stretto.engine.environment import prepare_environment
from tests.speech_families import EIGHT_STREAMS

pytestmark = pytest.mark.engine
prepare_environment()

from benchmarks import engines  # noqa: E402
from benchmarks.overload import Listener, OverloadArm, measure  # noqa: E402

PERIOD_S, DELAY = 0.02, 3


@pytest.mark.parametrize(("late", "gap_s"), [(0.0, 0.0), (0.06, 0.0), (0.11, 0.01)])
def test_a_frame_that_is_later_than_the_buffer_lasts_is_a_gap(late: float, gap_s: float) -> None:
    arrivals_s = PERIOD_S * np.arange(40 + DELAY)
    arrivals_s[30:] += late
    listener = Listener(arrivals_s.tolist())
    gap = listener.gap_s(num_frames=40, max_delay=DELAY, period_s=PERIOD_S, buffer_s=0.12)
    assert max(0.0, gap) == pytest.approx(gap_s)


@pytest.mark.nightly
def test_both_arms_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setitem(LAYOUTS, "eight", ("eight_streams", EIGHT_STREAMS))
    monkeypatch.setattr(engines, "TEXT", EIGHT_STREAMS.tasks[0].text[0])
    monkeypatch.setattr(engines, "HIDDEN", 128)
    arguments = argparse.Namespace(layout="eight", frames=30, guidance=2.0, rounds=1, interval_s=0.0, buffer_s=0.2)
    figures = measure(3, arguments, OverloadArm(tmp_path, "eight", 3))
    assert figures["guided_share_always"] == 1.0
    assert 0 <= figures["guided_share_adaptive"] <= 1
    assert figures["without_underrun_always"] in (0.0, 0.3333, 0.6667, 1.0)
