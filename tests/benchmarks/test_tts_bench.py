"""Figures are read from a tts-bench run."""

import json
from pathlib import Path

from benchmarks.tts_bench import read_figures


def test_stalled_requests_count_as_complete_and_errors_do_not(tmp_path: Path) -> None:
    kinds = [None, None, "audio_stall", "http_error", "timeout", "timeout"]
    results = [{"phase": "measurement", "error_kind": kind} for kind in kinds]
    results.append({"phase": "warmup", "error_kind": None})
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(result) + "\n" for result in results))
    summary = {"scheduled_requests": 7, "measurement_duration_s": 30.0}
    summary |= {"ttfb_ms": {"p50": 250.0}, "audible_ttfa_ms": {"p50": 300.0}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    figures = read_figures(tmp_path)
    assert (figures["scheduled"], figures["complete"], figures["without_stall"]) == (7, 3, 2)
    assert figures["errors"] == {"http_error": 1, "timeout": 2}
    assert (figures["first_byte_ms_p50"], figures["first_sound_ms_p50"]) == (250.0, 300.0)
