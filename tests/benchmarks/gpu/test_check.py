"""The whole check as a dry run: every path up to the CUDA call, tiny, on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.engine


def test_a_dry_run_passes_every_section(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    command = [str(ROOT / "benchmarks/gpu/check.sh"), "--dry-run", "--out", str(tmp_path), "--limit-s", "1800"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = {path.stem: [json.loads(line) for line in path.open()] for path in tmp_path.glob("*.jsonl")}
    assert [line["status"] for line in results["summary"]] == ["passed"] * len(results["summary"])
    assert {line["section"] for line in results["summary"]} == set(results) - {"summary"}
    assert {line["checkpoint"] for line in results["parity"]} == {"tiny", "eight_streams"}
    assert any(line["preemptions"] for line in results["parity"])
    retention = [line for line in results["throughput"] if line["part"] == "cfg_retention"]
    assert {(line["reply"], line["requests"]) for line in retention} == {
        (reply, number) for reply in ("audio", "text then audio") for number in (1, 2)
    }
    assert all(line["cfg_retention"] > 0 for line in retention)
    steps = [line for line in results["throughput"] if line["part"] == "step"]
    assert {"schedule", "prepare", "forward", "sample", "update"} <= set(steps[0]["host_ms"])
    assert [line["rows"] for line in results["efficiency"]] == [2, 4]
    begins = [line for line in results["throughput"] if line["part"] == "first_audio"]
    begins += [line for each in ("opuslm_7b", "opuslm_1b7") for line in results[each] if line["part"] == "speed"]
    assert len(begins) == 4
    for line in begins:
        assert 0 < line["prefill_ms"] < 1e3 * line["ttfp_s"]
        assert 0.1 < line["ttfp_over_floor"] < 10
        assert line["audio_s_per_s"] > 0
