"""The report begins with the findings and lists faults that were skipped."""

from typing import Any

from benchmarks.chaos.checks import lines
from benchmarks.harness import Result

PROCESS = {f"rss_mb_{when}": 100.0 for when in ("start", "warm", "end")}
PROCESS |= {"slope_rss_mb_per_min": 0.25, "threads": [3, 3], "descriptors": [7, 8]}  # type: ignore[dict-item]
CALM = {
    "minutes": 5.0,
    "warm_up_minutes": 5 / 3,
    "outcomes": {"verdicts": {"speak: right": 40, "speak: error": 2}, "errors": {"ServerFull: a|b": 2}},
    "processes": {"engine": PROCESS},
}
FAULTS: list[dict[str, Any]] = [
    {
        "fault": "kill engine",
        "right_s": 9.7,
        "outcomes": {"verdicts": {"speak: right": 5, "speak: error": 4, "speak: hung": 1, "upload: wrong": 2}},
    },
    {"fault": "stop proxy", "right_s": None, "outcomes": {"verdicts": {}}},
    {"fault": "clock +3600 s", "skipped": "no C compiler"},
]


def result_of(record: dict[str, Any]) -> Result:
    hardware = {"cpu": "Cpu X", "cores": 2, "memory_gib": 23.4, "gpus": None}
    return Result("chaos", record, "2026-11-21T18:00:00+00:00", "1234567", 2.5, hardware, {})


def test_chaos_report_lists_findings_and_faults() -> None:
    record = {"streams": 64, "seed": 3, "load": "bundled", "idle": False, "calm": CALM, "faults": FAULTS}
    record["wrong"] = ["kill engine: speak 0, listen: hung"]
    said = "\n".join(lines(result_of(record)))
    assert (
        said.index("**1 findings:**") < said.index("- kill engine: speak 0, listen: hung") < said.index("## The load")
    )
    assert (
        "--seed 3 --load bundled`, 2026-11-21T18:00:00+00:00, revision 1234567, on 2 cores (Cpu X), 23.4 GiB." in said
    )
    assert "42 answers" in said
    assert "| ServerFull: a/b | 2 |" in said
    assert "| engine | 100 | 100 | 100 | 0.25 | 3, 3 | 7, 8 |" in said
    assert "| kill engine | 9.7 | 5 | 0 | 4 | 3 |" in said
    assert "| stop proxy | never | 0 | 0 | 0 | 0 |" in said
    assert "| clock +3600 s | not done: no C compiler | | | | |" in said
    assert "No findings" in "\n".join(lines(result_of(record | {"wrong": []})))
    said = "\n".join(lines(result_of(record | {"load": "live", "idle": True})))
    assert said.startswith("# 64 streams of live sessions for 5 minutes, then faults at idle\n")
    assert "--seed 3 --load live --idle`" in said
