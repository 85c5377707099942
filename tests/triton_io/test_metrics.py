"""Counters grow, gauges move, and unknown fields are ignored."""

from importlib.metadata import version

import pytest

from stretto.triton_io.metrics import BuildInfo, Gauges
from tests.fakes_triton import MetricFamily


def test_stats_fields_become_metrics() -> None:
    gauges = Gauges("language_model", {"pairs": "pairs", "frames_total": "frames"})
    gauges.update({"pairs": 3, "frames_total": 10, "other": 1})
    gauges.update({"pairs": 1, "frames_total": 25})
    gauges.add("pairs", 2)
    assert {name: metric.value for name, metric in MetricFamily.made.items()} == {
        "stretto_pairs": 3,
        "stretto_frames_total": 25,
    }


def test_counter_must_not_decrease() -> None:
    gauges = Gauges("language_model", {"frames_total": "frames"})
    gauges.set("frames_total", 5)
    with pytest.raises(AssertionError, match="frames_total fell from 5 to 4"):
        gauges.set("frames_total", 4)


def test_build_info_metric_has_the_version() -> None:
    info = BuildInfo()
    metric = MetricFamily.made["stretto_build_info"]
    assert (metric.value, metric.labels) == (1.0, {"version": version("stretto")})
    del info
