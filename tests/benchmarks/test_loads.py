"""Metrics that clients observe, and the comparison of two paths to a server."""

import numpy as np
import pytest

from benchmarks.loads import summarise
from stretto_client.capacity.traces import Trace, underrun_s


def trace_of(arrivals: list[float], durations: list[float]) -> Trace:
    return Trace(sent=0.0, arrivals=arrivals, durations=durations, sound=0.0, finished=arrivals[-1])


def slow_underrun(arrivals: list[float], durations: list[float]) -> float:
    """Simulate a player in steps of 1 ms, and return the start delay that avoids every underrun."""
    for delay_ms in range(100_000):
        position = arrivals[0] + delay_ms / 1000
        late = False
        for arrival, duration in zip(arrivals, durations, strict=True):
            late |= arrival > position + 1e-9
            position += duration
        if not late:
            return delay_ms / 1000
    raise AssertionError("never in time")


@pytest.mark.parametrize(
    ("arrivals", "durations"),
    [
        ([1.0], [0.1]),
        ([1.0, 1.05], [0.1, 0.1]),
        ([1.0, 1.3, 1.35], [0.1, 0.1, 0.5]),
        ([1.0, 1.1, 1.9], [0.5, 0.1, 1.0]),
    ],
)
def test_underrun_is_the_playback_delay_a_player_needs(arrivals: list[float], durations: list[float]) -> None:
    assert underrun_s(trace_of(arrivals, durations)) == pytest.approx(slow_underrun(arrivals, durations), abs=1.1e-3)


def test_silence_and_errors_do_not_count_as_success() -> None:
    silent = Trace(sent=0.0, finished=2.0)
    silent.add(1.0, np.full(1600, 1e-4, np.float32), 16000)
    failed = Trace(sent=0.0, finished=2.0, error="boom")
    failed.add(1.0, np.full(1600, 0.1, np.float32), 16000)
    heard = Trace(sent=0.0, finished=2.0)
    heard.add(1.0, np.full(1600, 0.1, np.float32), 16000)
    summary = summarise([silent, failed, heard], wall_s=2.0)
    assert summary["success"] == pytest.approx(1 / 3)
    assert summary["audio_throughput"] == pytest.approx(0.05)
    assert summary["audio_ttfp_p50"] == pytest.approx(1.0)
    assert summary["audio_rtf_p50"] == pytest.approx(20.0)
