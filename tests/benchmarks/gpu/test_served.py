"""A dry run of the second call runs the real server on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stretto.hops import Hop

ROOT = Path(__file__).parents[3]
pytestmark = [pytest.mark.server, pytest.mark.nightly]


def test_served_dry_run_measures_speech_ring_and_triton_tax(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.served", "--dry-run", "--out", str(tmp_path), "--limit-s", "1500"]
    command += ["--jobs", "ensemble", "served_qwen3_tts"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "logs.txt").read_text()[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"ensemble": "passed", "served_qwen3_tts": "passed"}
    found = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    lines = [line for line in found if line["job"] == "ensemble" and "part" in line]
    assert [line["part"] for line in lines] == ["speaks", "ring", "triton_tax", "triton_tax"]
    assert lines[0]["samples"] == lines[1]["samples"] > 0
    assert [line["concurrency"] for line in lines[2:]] == [1, 2]
    assert all(line["triton_tax"] < 1 for line in lines[2:])
    parts = [line for line in found if line["job"] == "served_qwen3_tts" and "part" in line]
    hops = [line["hop"] for line in parts if line["part"] == "hop"]
    assert hops == [str(hop) for hop in Hop]
    loads = [line for line in parts if line["part"] in ("closed", "open")]
    assert [line["part"] for line in loads] == ["closed", "closed", "open"]
    assert all(line["success"] == 1.0 and line["audio_ttfp_p50"] > 0 for line in loads)
    assert loads[-1]["client_lag_p95"] >= 0
    assert (loads[-1]["clients"], loads[-1]["requests"]) == (2, 2)
