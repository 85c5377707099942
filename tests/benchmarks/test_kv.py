import argparse

import pytest

from benchmarks.layouts import LAYOUTS
from stretto.engine.environment import prepare_environment
from tests.speech_families import EIGHT_STREAMS

pytestmark = [pytest.mark.engine, pytest.mark.nightly]
prepare_environment()

from benchmarks import engines, kv  # noqa: E402


def test_a_late_half_costs_less_than_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYOUTS, "eight", ("eight_streams", EIGHT_STREAMS))
    monkeypatch.setattr(engines, "TEXT", EIGHT_STREAMS.tasks[0].text[0])
    monkeypatch.setattr(engines, "HIDDEN", 128)
    arguments = argparse.Namespace(layout="eight", requests=3, text=40, frames=60, stagger=2, guidance=2.0)
    figures = kv.measure(arguments)
    assert 1.0 < figures["kv_per_guided_request"] < 1.8
    assert figures["prefill_rows"] == 3 * (53 + 40 + 1 + 1)
    assert figures["prefill_rows_saved"] == 2 * 64, "the second and third find two blocks of 32 rows each"
