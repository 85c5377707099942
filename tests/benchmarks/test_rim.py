"""The table of the rim adds up."""

import pytest

from benchmarks.loads import Load
from benchmarks.rim import ORDER, Arm, table


def test_the_rim_is_the_proxy_the_server_the_stub_and_the_client() -> None:
    costs = dict(zip(ORDER, (2.0, 8.0, 1.0, 7.0, 60.0, 18.0, 4.0), strict=True))
    arms = [Arm(Load(16, 2, 75, scale), [costs, {**costs, "client": 6.0}, costs]) for scale in (1.5, 1.0)]
    record = arms[0].record()
    assert record["cpu_ms_per_audio_s"] == pytest.approx(costs)
    assert (record["rim_ms"], record["total_ms"], record["utterances"]) == (21.0, 100.0, 32)
    assert [arm.record()["guided"] for arm in arms] == [True, False]
    lines = table(arms).splitlines()
    assert lines[0] == "| process | 16 guided | 16 unguided |"
    assert lines[-2:] == ["| rim | 21.0 | 21.0 |", "| total | 100.0 | 100.0 |"]
