import numpy as np
import pytest

from benchmarks.speech_metrics import Trace, percentiles, summarise, underrun_s


def trace_of(arrivals: list[float], durations: list[float]) -> Trace:
    return Trace(sent=0.0, arrivals=arrivals, durations=durations, sound=0.0, finished=arrivals[-1])


def slow_underrun(arrivals: list[float], durations: list[float]) -> float:
    """A player, millisecond by millisecond: how long must it delay its start for no chunk to come late?"""
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
def test_underrun_is_the_delay_a_player_needs(arrivals: list[float], durations: list[float]) -> None:
    assert underrun_s(trace_of(arrivals, durations)) == pytest.approx(slow_underrun(arrivals, durations), abs=1.1e-3)


def test_a_silent_beginning_is_not_the_first_sound() -> None:
    trace = Trace(sent=0.0)
    trace.add(1.0, np.zeros(160, np.float32), 16000)
    trace.add(1.1, np.concatenate([np.zeros(80), np.full(80, 0.1)]).astype(np.float32), 16000)
    assert trace.sound == pytest.approx(0.015)


def test_silence_and_errors_are_no_success() -> None:
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


def test_a_p99_needs_a_hundred_values() -> None:
    assert "x_p99" not in percentiles("x", [1.0] * 99)
    assert "x_p99" in percentiles("x", [1.0] * 100)
