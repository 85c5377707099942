"""A dry run of the complete check takes every code path up to the CUDA calls, with tiny models on the CPU."""

import json
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.host import _share_memory
from benchmarks.gpu.jobs import JOBS, Setup, append
from tests.cuda_runtime import GRANULARITY, install_for

ROOT = Path(__file__).parents[3]
KERNELS = {"draw", "embed", "noise", "sampler", "head"}
pytestmark = pytest.mark.engine


def walked(folder: Path, jobs: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """Run `jobs` in a dry run and return the records of each."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--out", str(folder), "--limit-s", "3000"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--jobs", *jobs], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return records(folder, done.stdout, jobs)


def records(folder: Path, printed: str, jobs: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the records of each of `jobs`; all must have passed."""
    assert json.loads(printed.splitlines()[-1]) == dict.fromkeys(jobs, "passed")
    assert {path.name for path in folder.iterdir()} == {"all.jsonl", "logs.txt"}
    lines = [json.loads(line) for line in (folder / "all.jsonl").read_text().splitlines()]
    found = {job: [line for line in lines if line["job"] == job and "status" not in line] for job in jobs}
    assert all(found.values())
    return found


def test_stock_steps_are_compared_with_those_of_an_engine_with_whole_graphs(tmp_path: Path) -> None:
    from benchmarks.gpu.speed import our_steps

    setup = Setup("cuda", tmp_path)
    about = {"model": "qwen3_tts", "part": "step"}
    for mode, number in (("plain", 1), ("whole", 1), ("pieces", 16)):
        append(setup, {"job": "engine", **about, "mode": mode, "requests": number, "step_ms": float(len(mode))})
    assert our_steps(setup, "qwen3_tts") == {1: 5.0, 16: 6.0}


def test_host_job_reads_a_gpu_ring_in_a_client_and_kills_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cuda = install_for(monkeypatch)
    assert _share_memory(Setup("cuda", tmp_path)) == {"bytes": GRANULARITY, "ok": True}
    assert cuda.is_unused


@pytest.mark.nightly
def test_dry_run_of_every_job_passes(tmp_path: Path) -> None:
    found = walked(tmp_path, JOBS)
    assert {line["checkpoint"] for line in found["parity_eager"]} == {"tiny", "eight_streams"}
    assert any(line["preemptions"] for line in found["parity_preempted"])
    assert {line["kernel"] for line in found["kernels"]} == KERNELS
    for job, *rows in (("ours_8b", 2, 4), ("ours_1b7", 1, 2), ("ours_qwen3_tts", 1, 2)):
        steps = [line for line in found[job] if line["part"] == "step"]
        assert [(line["requests"], line["rows"]) for line in steps] == list(zip((1, 2), rows, strict=True))
        assert {"schedule", "prepare", "forward", "sample", "update"} <= set(steps[0]["host_ms"])
        assert all(line["ttfp_over_floor"] > 0 for line in found[job] if line["part"] == "first_audio")
    for job, rows in (("stock_8b", [2, 4]), ("stock_1b7", [1, 2])):
        assert [line["rows"] for line in found[job]] == rows
        assert all(line["engine_efficiency"] > 0 for line in found[job])
    retention = [line for line in found["ours_8b"] if line["part"] in ("cfg_retention", "text")]
    assert [(line["requests"], line["text_rows"]) for line in retention] == [(1, 0), (2, 0), (1, 4), (2, 4)]
    assert all(line["cfg_retention"] > 0 for line in retention)
