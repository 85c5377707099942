"""Jobs one after another, each in a forked process group, so that a crash or a hang ends only one job."""

import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from multiprocessing.context import ForkProcess
from typing import Any

from benchmarks.gpu.jobs import Job, Setup, append, run_job

# CUDA's messages. With blocking launches, the stack is that of the failing call.
ILLEGAL_ACCESS = (b"illegal memory access", b"CUDA_ERROR_ILLEGAL_ADDRESS")
BLOCKING = {"CUDA_LAUNCH_BLOCKING": "1"}
FAILED = 1


@dataclass(frozen=True)
class Outcome:
    """Outcome of a job."""

    job: str
    status: str
    seconds: float = 0.0
    lines: int = 0


@dataclass(frozen=True)
class Children:
    """Runs jobs. is_cold: each runs in a new interpreter, because a fork of this process cannot use CUDA."""

    setup: Setup
    is_cold: bool = False

    def run_all(self, jobs: Mapping[str, Job], limit_s: float) -> list[Outcome]:
        """Run all jobs within `limit_s` seconds; a job may use time that earlier jobs left of their limits."""
        begun = time.monotonic()
        planned, outcomes = begun, list[Outcome]()
        for name, job in jobs.items():
            planned += job.limit_s
            now = time.monotonic()
            left = min(max(job.limit_s, planned - now), begun + limit_s - now)
            outcomes += self._run(name, job, left) if left >= 1 else [Outcome(name, "not run")]
            self._report(outcomes[-1])
        return outcomes

    def _run(self, name: str, job: Job, limit_s: float) -> list[Outcome]:
        """Run a job; after an illegal memory access, run it again with synchronous launches."""
        self.setup.logs.touch()  # a job may be killed before it has written a line
        since = self.setup.logs.stat().st_size
        first = self._attempt(name, job, limit_s)
        if first.status == "passed" or not self._has_faulted(since):
            return [first]
        self._report(first)
        again = replace(job, environment={**job.environment, **BLOCKING})
        return [first, self._attempt(f"{name} (blocking)", again, limit_s)]

    def _has_faulted(self, since: int) -> bool:
        with self.setup.logs.open("rb") as file:
            file.seek(since)
            output = file.read()
        return any(words in output for words in ILLEGAL_ACCESS)

    def _attempt(self, name: str, job: Job, limit_s: float) -> Outcome:
        before, begun = self._num_lines(), time.monotonic()
        child = multiprocessing.get_context("fork").Process(target=self._enter, args=(name, job, begun + limit_s))
        child.start()
        try:
            child.join(limit_s)
            status = _status(child)
        finally:
            _end_group(child)
        return Outcome(name, status, round(time.monotonic() - begun, 1), self._num_lines() - before)

    def _num_lines(self) -> int:
        return self.setup.results.read_bytes().count(b"\n") if self.setup.results.exists() else 0

    def _report(self, outcome: Outcome) -> None:
        append(self.setup, asdict(outcome))
        print(f"{outcome.job}: {outcome.status}, {outcome.seconds} s", flush=True)

    def _enter(self, name: str, job: Job, end_s: float) -> None:
        """Run in the child: create a process group, redirect output to the log, and run the job."""
        os.setsid()
        log = self.setup.logs.open("a", buffering=1)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.stdout = sys.stderr = log
        print(f"===== {name}, {end_s - time.monotonic():.0f} s", flush=True)
        os.environ.update(job.environment)
        if self.is_cold or (set(job.environment) - set(BLOCKING) and not self.setup.is_small):
            words = [sys.executable, "-m", "benchmarks.gpu", "--one", name, json.dumps(asdict(job)), f"{end_s}"]
            words += ["--device", self.setup.device, "--out", str(self.setup.out)]
            os.execv(sys.executable, words)
        enter_job(name, job, self.setup, end_s)


def enter_job(name: str, job: Job, setup: Setup, end_s: float) -> None:
    """Run a job in this process, which ends with it; after a crash or a hang, the log has the stacks of all threads.

    The stacks of a hang are printed shortly before `end_s` of the monotonic clock, when the parent kills this process.
    """
    faulthandler.disable()  # a library may have replaced an earlier handler
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(0.05, 0.9 * (end_s - time.monotonic())))
    is_right = run_job(name, job, setup)
    faulthandler.cancel_dump_traceback_later()
    sys.exit(0 if is_right else FAILED)


def _status(child: ForkProcess) -> str:
    if child.exitcode is None:
        return "timed out"
    if child.exitcode < 0:
        return signal.Signals(-child.exitcode).name
    return "passed" if child.exitcode == 0 else "failed"


def _end_group(child: ForkProcess) -> None:
    """Kill a child and its process group, which includes engine and worker processes."""
    assert child.pid is not None
    for end in (os.killpg, os.kill):  # also the child itself, which may not have created its group yet
        try:
            end(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    child.join()


def verdicts(setup: Setup) -> list[str]:
    """Return a line for the last verdict of each job that has one."""
    lines = map(json.loads, setup.results.read_text().splitlines()) if setup.results.exists() else ()
    found = {line["job"]: line for line in lines if "verdict" in line}
    return [f"{job}: {line['verdict']} ({line['rule']})" for job, line in found.items()]


def table(outcomes: list[Outcome]) -> str:
    """Return the outcomes as a table."""
    width = max(len(outcome.job) for outcome in outcomes)
    rows = [f"{each.job:{width}}  {each.status:9}  {each.seconds:6.1f} s  {each.lines:3} lines" for each in outcomes]
    return "\n".join(rows)


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """Return the outcomes as one record."""
    return {outcome.job: outcome.status for outcome in outcomes}
