"""Fifteen minutes on a GPU: both calls fit their limits, and a dry run on the CPU runs the most valuable jobs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import quarter
from benchmarks.gpu.bundling.contents import CALL_BYTES
from benchmarks.gpu.jobs import IF_QUARTER_HAS_TIME, QUARTER, seconds_of

ROOT = Path(__file__).parents[3]
PARTS = {"codec": "speed", "engine": "prompt", "server": "hop"}  # a line that each of these jobs writes
STAND_INS = ROOT / "tests/benchmarks/gpu/stand_ins"  # for the packages that the job `peers` measures


def test_two_calls_fit_and_the_second_runs_the_most_valuable_jobs_first() -> None:
    first, second = quarter.calls()
    assert not first.is_last
    assert second.is_last
    assert max(first.num_bytes, second.num_bytes) <= CALL_BYTES
    assert first.tree_bytes == quarter.sparse_bytes() < 20 << 20
    certain = {name: job for name, job in QUARTER.items() if name not in IF_QUARTER_HAS_TIME}
    assert seconds_of(certain) <= quarter.RUN_S
    assert list(QUARTER) == [*certain, *IF_QUARTER_HAS_TIME]
    assert list(QUARTER)[:5] == ["host", "codec", "depth", "engine", "server"]
    assert "benchmarks.gpu.quarter --out" in second.command
    assert f"--limit-s {quarter.RUN_S:.0f}" in second.command


def lines_of(out: Path, *jobs: str) -> list[dict[str, Any]]:
    """Run jobs on the CPU and return the lines that they wrote."""
    command = [sys.executable, "-m", "benchmarks.gpu.quarter", "--dry-run", "--out", str(out)]
    command += ["--limit-s", "1500", "--jobs", *jobs]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{STAND_INS}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr + (out / "logs.txt").read_text()[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == dict.fromkeys(jobs, "passed")
    return [json.loads(line) for line in (out / "all.jsonl").read_text().splitlines()]


@pytest.mark.nightly
def test_depth_transformers_and_peers_are_rehearsed_on_the_cpu(tmp_path: Path) -> None:
    """The packages of the peers are replaced by stand-ins, which have their interfaces."""
    lines = lines_of(tmp_path, "depth", "peers")
    ways = {(line["way"], line["rows"]): line.get("ok") for line in lines if line.get("part") == "frame"}
    assert ways == {("stock", 1): None, ("stock", 2): None, ("ours", 1): True, ("ours", 2): True}
    assert any(line.get("part") == "draw" for line in lines)
    peers = {line["peer"]: (line["frames"], "first_audio_ms" in line) for line in lines if "peer" in line}
    assert peers == {"qwen_tts": (50, True), "faster_qwen3_tts": (50, True)}


@pytest.mark.server
@pytest.mark.nightly
def test_dry_run_on_the_cpu_writes_the_lines_of_each_job(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, "host", *PARTS)
    for job, part in PARTS.items():
        assert any(part in (line.get("part"), line.get("what")) for line in lines if line["job"] == job)
