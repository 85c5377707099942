"""The runner of jobs: each job runs, even if others fail."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.__main__ import parse
from benchmarks.gpu.jobs import (
    IF_TIME_IS_LEFT,
    JOBS,
    QUARTER,
    SERVED,
    Attempt,
    Children,
    Job,
    Outcome,
    Setup,
    seconds_of,
    summary,
    table,
)
from benchmarks.gpu.served import ShapeLoads
from tests.patience import until
from tests.tiers import by_night

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


def test_crashed_job_keeps_results_and_stack_and_next_job_runs(setup: Setup) -> None:
    outcomes = Children(setup).run_all(fakes("crashes", "passes"), 2 * LIMIT_S)
    assert [(outcome.status, outcome.lines) for outcome in outcomes] == [("SIGSEGV", 1), ("passed", 2)]
    assert [line["figure"] for line in lines(setup, "crashes")] == [6]
    log = setup.logs.read_text()
    assert log.index("about to read nothing") < log.index("Segmentation fault") < log.index("in crashes")


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


def test_job_killed_before_logging_counts_as_timed_out(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Children, "_enter", lambda *_: time.sleep(LIMIT_S))
    outcomes = Children(setup).run_all(fakes("passes", limit_s=1.0), LIMIT_S)
    assert [outcome.status for outcome in outcomes] == ["timed out"]


def lines_of(setup: Setup, job: str) -> list[dict[str, Any]]:
    return lines(setup, job) if setup.results.exists() else []


@pytest.mark.parametrize(("where", "status"), [("error", "failed"), ("abort", "SIGABRT")])
def test_illegal_accesses_rerun_the_job_with_blocking_launches(
    setup: Setup, where: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING", raising=False)
    jobs = {"strays": Job(f"{FAKES}:strays", LIMIT_S, {"where": where}), **fakes("fails")}
    outcomes = Children(setup).run_all(jobs, 3 * LIMIT_S)
    assert [(each.job, each.status) for each in outcomes] == [
        ("strays", status), ("strays (blocking)", status), ("fails", "failed")
    ]  # fmt: skip
    for name, blocking in (("strays", None), ("strays (blocking)", "1")):
        assert lines(setup, name)[0]["blocking"] == blocking
    assert "CUDA_LAUNCH_BLOCKING" not in os.environ


@pytest.mark.parametrize("is_cold", [False, *by_night(True)])
def test_job_environment_is_set_before_imports(setup: Setup, is_cold: bool) -> None:
    job = Job(f"{FAKES}:reads", LIMIT_S, environment={"READ_IN_AN_IMPORT": "1"})
    device = "cpu" if is_cold else "cuda"
    (outcome,) = Children(Setup(device, setup.out), is_cold).run_all({"reads": job}, LIMIT_S)
    assert outcome.status == "passed", setup.logs.read_text()
    (line,) = lines(setup, "reads")
    assert (line["read"], line["is_fresh"], line["device"]) == ("1", True, device)
    assert "READ_IN_AN_IMPORT" not in os.environ


def test_checks_in_a_row_run_at_the_same_time_on_a_gpu(setup: Setup) -> None:
    on_gpu = Setup("cuda", setup.out)
    pair = {f"meets {name}": Job(f"{FAKES}:meets", LIMIT_S, {"name": name}, is_check=True) for name in "ab"}
    outcomes = Children(on_gpu).run_all({**pair, **fakes("passes")}, 2 * LIMIT_S)
    assert [(each.job, each.status, each.lines) for each in outcomes] == [
        ("meets a", "passed", 1), ("meets b", "passed", 1), ("passes", "passed", 2)
    ]  # fmt: skip
    log = setup.logs.read_text()
    assert log.index("a is here") < log.index("a has met all") < log.index("b is here"), "the log is by job"


def test_job_runs_write_two_files_and_print_a_table(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = Children(setup).run_all(fakes("passes", "fails"), 2 * LIMIT_S)
    assert sorted(path.name for path in setup.out.iterdir()) == ["all.jsonl", "logs.txt"]
    became = [json.loads(line) for line in setup.results.read_text().splitlines() if "status" in json.loads(line)]
    assert [(line["job"], line["status"], line["lines"]) for line in became] == [
        ("passes", "passed", 2), ("fails", "failed", 2)
    ]  # fmt: skip
    rows = [row.split()[:2] for row in table(outcomes).splitlines()]
    assert rows == [["passes", "passed"], ["fails", "failed"]]
    assert summary(outcomes) == {"passes": "passed", "fails": "failed"}
    assert "figure" not in capsys.readouterr().out, "what jobs print goes into their log"


def test_jobs_without_time_left_are_reported_as_not_run(setup: Setup) -> None:
    assert Children(setup).run_all(fakes("passes"), 0.5) == [Outcome("passes", "not run")]


def test_job_time_limit_includes_unused_time_of_earlier_jobs(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, float] = {}

    def attempt(self: Children, group: dict[str, Job], limit_s: float) -> list[Attempt]:
        given.update(dict.fromkeys(group, limit_s))
        return [Attempt(Outcome(name, "passed"), False) for name in group]

    monkeypatch.setattr(Children, "_attempt", attempt)
    Children(setup).run_all({name: Job("", 50.0) for name in "abc"}, 120)
    assert [round(given[name], -1) for name in "abc"] == [50, 100, 120]


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
