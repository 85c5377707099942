import argparse
import math

import pytest

from benchmarks.layouts import LAYOUTS
from stretto.engine.environment import prepare_environment
from tests.speech_families import EIGHT_STREAMS

pytestmark = pytest.mark.engine


@pytest.mark.nightly
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_step_parts_add_up_and_match_the_throughput(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    prepare_environment()
    from benchmarks import engine, engines

    monkeypatch.setitem(LAYOUTS, "eight", ("eight_streams", EIGHT_STREAMS))
    monkeypatch.setattr(engines, "TEXT", EIGHT_STREAMS.tasks[0].text[0])
    monkeypatch.setattr(engines, "HIDDEN", 128)
    arguments = argparse.Namespace(layout="eight", requests=[3], frames=16, guidance=scale, rounds=1)
    functions = engines.drawing.draw, engines.guided_heads.guide
    (figures,) = engine.measure_layout(arguments)
    assert (engines.drawing.draw, engines.guided_heads.guide) == functions, "they are watched only while it runs"
    parts = dict(figures["ms_per_step"])
    total_ms = parts.pop("all")
    assert math.isclose(sum(parts.values()), total_ms, rel_tol=0.25)
    assert math.isclose(figures["frames_per_cpu_s"], 3 * 16 / (figures["steps"] * total_ms / 1e3), rel_tol=0.05)
    assert ("guidance" in parts) == (scale != 1.0)
    assert {"schedule", "prepare", "forward", "heads", "draw", "update"} <= set(parts)
