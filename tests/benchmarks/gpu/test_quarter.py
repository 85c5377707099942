"""Fifteen minutes on a GPU: both calls fit their limits, and a dry run on the CPU runs the most valuable jobs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import quarter
from benchmarks.gpu.bundling.contents import CALL_BYTES
from benchmarks.gpu.jobs import QUARTER, seconds_of

ROOT = Path(__file__).parents[3]
PARTS = {"codec": "speed", "engine": "prompt", "server": "hop"}  # a line that each of these jobs writes


def test_two_calls_fit_and_the_second_runs_the_most_valuable_jobs_first() -> None:
    first, second = quarter.calls()
    assert not first.is_last
    assert second.is_last
    assert max(first.num_bytes, second.num_bytes) <= CALL_BYTES
    assert first.tree_bytes == quarter.sparse_bytes() < 20 << 20
    assert seconds_of(QUARTER) <= quarter.RUN_S
    assert list(QUARTER)[:4] == ["host", "codec", "engine", "server"]
    assert "benchmarks.gpu.quarter --out" in second.command
    assert f"--limit-s {quarter.RUN_S:.0f}" in second.command


def test_the_tree_that_travels_lacks_weights_and_test_data(tmp_path: Path) -> None:
    for name in ("model_repository/language_model/1/checkpoint/model.safetensors", "tests/data/a.wav", "code.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"0123")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert quarter.sparse_bytes(tmp_path) == 4


def test_packing_prints_sizes_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert quarter.pack(["--print"]) == 0
    printed = capsys.readouterr().out
    assert "git sparse-checkout set --no-cone" in printed
    assert printed.count("MiB with the working tree") == 2


@pytest.mark.server
@pytest.mark.nightly
def test_dry_run_on_the_cpu_writes_the_lines_of_each_job(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.quarter", "--dry-run", "--out", str(tmp_path)]
    command += ["--limit-s", "1500", "--jobs", "host", *PARTS]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "logs.txt").read_text()[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == dict.fromkeys(["host", *PARTS], "passed")
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    for job, part in PARTS.items():
        assert any(part in (line.get("part"), line.get("what")) for line in lines if line["job"] == job)
