"""The reader of perf_analyzer's exports, on a real export with truncated samples and on small handwritten ones."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.perf_report import main

RECORDED = Path(__file__).parents[1] / "data" / "perf_export.json"


def export(tmp_path: Path, *requests: list[tuple[int, dict]]) -> Path:
    records = [
        {
            "timestamp": 0,
            "response_timestamps": [timestamp for timestamp, _ in responses],
            "response_outputs": [output for _, output in responses],
        }
        for responses in requests
    ]
    path = tmp_path / "export.json"
    path.write_text(
        json.dumps({"experiments": [{"experiment": {"mode": "concurrency", "value": 2}, "requests": records}]})
    )
    return path


def test_perf_report_matches_the_recorded_export(capsys: pytest.CaptureFixture[str]) -> None:
    requests = json.loads(RECORDED.read_text())["experiments"][0]["requests"]
    firsts, gaps = [], []
    for request in requests:
        times = [
            time
            for time, output in zip(request["response_timestamps"], request["response_outputs"], strict=True)
            if output["event"] != ""
        ]
        firsts.append((times[0] - request["timestamp"]) / 1e9)
        gaps += [(after - before) / 1e9 for before, after in pairwise(times)]
    assert main([str(RECORDED)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    (summary,) = json.loads(last)["experiments"]
    assert summary["first_response_s"]["p50"] == pytest.approx(sorted(firsts)[1], abs=1e-6)
    assert min(gaps) <= summary["inter_response_s"]["p50"] <= max(gaps)
    assert summary["responses"] == len(gaps) + len(firsts)
    assert lines[0].startswith(f"concurrency {summary['concurrency']}: 3 of 3 requests answered")
    assert f"{1000 * summary['first_response_s']['p50']:.1f}" in lines[2]
