"""The runner of jobs: each job runs, even if others fail."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.__main__ import parse
from benchmarks.gpu.jobs import IF_TIME_IS_LEFT, JOBS, QUARTER, SERVED, Children, Job, Setup, seconds_of
from benchmarks.gpu.served import ShapeLoads
from tests.patience import until

pytestmark = pytest.mark.slow

FAKES, ROOT = "tests.benchmarks.gpu.fake_jobs", Path(__file__).parents[3]
LIMIT_S = 300.0  # for processes that end by themselves on any machine


def fakes(*names: str, limit_s: float = LIMIT_S) -> dict[str, Job]:
    return {name: Job(f"{FAKES}:{name}", limit_s) for name in names}


def lines(setup: Setup, job: str) -> list[dict[str, Any]]:
    """Return the result lines of a job, excluding the line with its outcome."""
    found = [json.loads(line) for line in setup.results.read_text().splitlines()]
    return [line for line in found if line["job"] == job and "status" not in line]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setenv("PYTHONPATH", str(ROOT) + ":" + os.environ.get("PYTHONPATH", ""))
    return Setup("cpu", tmp_path)


def test_failed_job_keeps_results_and_log_and_next_job_runs(setup: Setup) -> None:
    outcomes = Children(setup).run_all(fakes("fails", "finds", "passes"), 3 * LIMIT_S)
    assert [outcome.status for outcome in outcomes] == ["failed", "failed", "passed"]
    assert [outcome.lines for outcome in outcomes] == [2, 2, 2]
    figures, error = lines(setup, "fails")
    assert (figures["figure"], error["error"]) == (3, "ArithmeticError: out of luck")
    assert "ArithmeticError: out of luck" in setup.logs.read_text()
    assert [line["figure"] for line in lines(setup, "finds")] == [4, 5], "later results are still had"
    assert lines(setup, "passes")[0]["is_small"]


@pytest.mark.nightly
def test_hung_job_is_killed_with_children_and_next_job_runs(setup: Setup) -> None:
    jobs = fakes("hangs", limit_s=1.0)
    while not lines_of(setup, "hangs") or "in hangs" not in setup.logs.read_text():  # as this machine takes to fork
        jobs = fakes("hangs", limit_s=2 * jobs["hangs"].limit_s)
        outcomes = Children(setup).run_all({**jobs, **fakes("passes")}, 10 * LIMIT_S)
        assert [outcome.status for outcome in outcomes] == ["timed out", "passed"]
    until(lambda: not any(is_running(line["child"]) for line in lines_of(setup, "hangs")))
    log = setup.logs.read_text()
    assert "in hangs" in log, "where it hung"
    assert "Timeout (" not in log, "a thread of faulthandler would read the frames of running threads, and may crash"


def lines_of(setup: Setup, job: str) -> list[dict[str, Any]]:
    return lines(setup, job) if setup.results.exists() else []


def test_jobs_fit_into_a_ten_minute_call() -> None:
    limit_s = parse([]).limit_s
    first = {name: job for name, job in JOBS.items() if name not in IF_TIME_IS_LEFT}
    assert sum(job.limit_s for job in first.values()) > seconds_of(first), "checks run at the same time"
    assert seconds_of(first) <= limit_s <= 530


def test_every_gpu_job_function_accepts_its_arguments() -> None:
    import inspect

    for job in (*JOBS.values(), *SERVED.values(), *QUARTER.values()):
        bound = inspect.signature(job.load()).bind(Setup("cpu", Path()), **job.arguments)
        ShapeLoads(**bound.arguments.get("loads", {}))
