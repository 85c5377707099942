"""What the benchmark of large files makes of its figures."""

import argparse

import pytest

from benchmarks.large_audio import beside, describe, keep_busy


def test_delays_are_told_beside_an_idle_and_a_busy_machine() -> None:
    took = {"alone": [0.2, 0.2, 0.3], "busy": [0.25] * 3, "prepared": [0.26] * 3, "refused": [0.24] * 3}
    record = describe(took, argparse.Namespace(rounds=1, requests=3))
    assert record["first_audio_p50_ms_alone"] == pytest.approx(200)
    assert record["busy_delay_ms"] == pytest.approx(50)
    assert record["prepared_delay_ms"] == pytest.approx(60)
    assert record["prepared_over_busy_ms"] == pytest.approx(10)
    assert record["refused_over_busy_ms"] == pytest.approx(-10)


def test_a_turn_ends_what_ran_beside_it() -> None:
    with beside(keep_busy, "nowhere") as process:
        assert process.is_alive()
    assert not process.is_alive()
    with beside(None) as process:
        assert process is None
