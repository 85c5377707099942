"""The reader of perf_analyzer's exports, on a real export with truncated samples and on small handwritten ones."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.perf_report import main, read_export, summarise

RECORDED = Path(__file__).parents[1] / "data" / "perf_export.json"


def response(at_ms: float, duration_s: float | None) -> tuple[int, dict]:
    event = "" if duration_s is None else json.dumps({"duration_s": duration_s})
    return int(at_ms * 1e6), {"pcm": 0.0, "event": event}


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


def summary_of(path: Path) -> dict:
    ((load, exchanges),) = read_export(path).items()
    return summarise(load, exchanges)


def test_report_distinguishes_text_audio_and_empty_final_responses(tmp_path: Path) -> None:
    first = [response(10, 0.0), response(30, 0.5), response(60, 0.5), response(61, None)]
    second = [response(20, 0.0), response(50, 1.0), response(55, None)]
    summary = summary_of(export(tmp_path, first, second))
    assert summary == {
        "concurrency": 2,
        "requests": 2,
        "answered": 2,
        "responses": 5,
        "audio_s": 2.0,
        "first_response_s": {"p50": 0.015, "p95": 0.0195},
        "first_audio_s": {"p50": 0.04, "p95": 0.049},
        "inter_response_s": {"p50": 0.03, "p95": 0.03},
        "total_s": {"p50": 0.055, "p95": 0.0595},
    }


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
