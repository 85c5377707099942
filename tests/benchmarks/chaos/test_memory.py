"""Memory figures of processes under load: slopes, names and reports."""

import os

import pytest

from benchmarks.chaos.checks import Follower, describe
from benchmarks.harness import Usage, slope_mb_per_min


def usage(at_s: float, mb: float) -> Usage:
    return Usage(at_s=at_s, rss_mb=mb, pss_mb=mb, uss_mb=mb, cpu_s=at_s / 2, threads=3, descriptors=7)


def test_memory_slope_is_a_linear_fit() -> None:
    noise = (0.3, -0.3, -0.3, 0.3)
    rising = [usage(at_s, 100 + 0.5 * at_s / 60 + noise[index % 4]) for index, at_s in enumerate(range(0, 3600, 5))]
    assert slope_mb_per_min(rising, "rss_mb") == pytest.approx(0.5, abs=0.01)
    assert slope_mb_per_min([usage(0, 1), usage(5, 1)], "rss_mb") == 0
    assert slope_mb_per_min([usage(0, 1)], "rss_mb") == 0


def test_reported_memory_slope_excludes_the_warm_up() -> None:
    follower = Follower(os.getpid())
    follower.usages = {"engine": [usage(at_s, 500 + min(at_s, 600)) for at_s in range(0, 3600, 5)]}
    ends = {"engine": usage(0, 500)}, {"engine": usage(3600, 1100)}
    record = describe(follower, 20.0, *ends)["engine"]
    assert (record["rss_mb_start"], record["rss_mb_warm"], record["rss_mb_end"]) == (500, 1100, 1100)
    assert record["slope_rss_mb_per_min"] == 0
    assert record["cores"] == 0.5
    assert record["threads"] == [3, 3]
