"""Jobs one after another, each in a forked process group: a fault or a hang ends one job and nothing else."""

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

# As CUDA words it; a launch is then asynchronous no more, and the stack is that of the guilty call.
ILLEGAL_ACCESS = (b"illegal memory access", b"CUDA_ERROR_ILLEGAL_ADDRESS")
BLOCKING = {"CUDA_LAUNCH_BLOCKING": "1"}
FAILED = 1


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    job: str
    status: str
    seconds: float = 0.0
    lines: int = 0


@dataclass(frozen=True)
class Children:
    """Runs jobs. is_cold: every one in a fresh interpreter, since what is imported here cannot be used in a fork."""

    setup: Setup
    is_cold: bool = False

    def run_all(self, jobs: Mapping[str, Job], limit_s: float) -> list[Outcome]:
        """All jobs within `limit_s` seconds; a job may use what those before it have left of their limits."""
        begun = time.monotonic()
        planned, outcomes = begun, list[Outcome]()
        for name, job in jobs.items():
            planned += job.limit_s
            now = time.monotonic()
            left = min(max(job.limit_s, planned - now), begun + limit_s - now)
            outcomes += self._run(name, job, left) if left >= 1 else [Outcome(name, "not run")]
            self._tell(outcomes[-1])
        return outcomes

    def _run(self, name: str, job: Job, limit_s: float) -> list[Outcome]:
        """A job and, where it met an illegal access, the same once more with each launch waited for."""
        since = self.setup.logs.stat().st_size if self.setup.logs.exists() else 0
        first = self._attempt(name, job, limit_s)
        if first.status == "passed" or not self._has_faulted(since):
            return [first]
        self._tell(first)
        again = replace(job, environment={**job.environment, **BLOCKING})
        return [first, self._attempt(f"{name} (blocking)", again, limit_s)]

    def _has_faulted(self, since: int) -> bool:
        with self.setup.logs.open("rb") as file:
            file.seek(since)
            said = file.read()
        return any(words in said for words in ILLEGAL_ACCESS)

    def _attempt(self, name: str, job: Job, limit_s: float) -> Outcome:
        before, begun = self._num_lines(), time.monotonic()
        child = multiprocessing.get_context("fork").Process(target=self._enter, args=(name, job, limit_s))
        child.start()
        try:
            child.join(limit_s)
            status = _status(child)
        finally:
            _end_group(child)
        return Outcome(name, status, round(time.monotonic() - begun, 1), self._num_lines() - before)

    def _num_lines(self) -> int:
        return self.setup.results.read_bytes().count(b"\n") if self.setup.results.exists() else 0

    def _tell(self, outcome: Outcome) -> None:
        append(self.setup, asdict(outcome))
        print(f"{outcome.job}: {outcome.status}, {outcome.seconds} s", flush=True)

    def _enter(self, name: str, job: Job, limit_s: float) -> None:
        """In the child: a group of its own, the log for all that is printed, then the job."""
        os.setsid()
        log = self.setup.logs.open("a", buffering=1)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.stdout = sys.stderr = log
        print(f"===== {name}, {limit_s:.0f} s", flush=True)
        os.environ.update(job.environment)
        if self.is_cold or (set(job.environment) - set(BLOCKING) and not self.setup.is_small):
            words = [sys.executable, "-m", "benchmarks.gpu", "--one", name, json.dumps(asdict(job)), f"{limit_s}"]
            words += ["--device", self.setup.device, "--out", str(self.setup.out)]
            os.execv(sys.executable, words)
        enter_job(name, job, self.setup, limit_s)


def enter_job(name: str, job: Job, setup: Setup, limit_s: float) -> None:
    """Run a job in this process, which ends with it; a crash and a hang leave every thread's stack in the log."""
    faulthandler.disable()  # a library may have put a handler of its own in the place of one that was enabled before
    faulthandler.enable()
    faulthandler.dump_traceback_later(0.95 * limit_s)
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
    """End a child and whatever it has left: engine and worker processes are in its group."""
    assert child.pid is not None
    for end in (os.killpg, os.kill):  # the child itself, too, where it has not come so far as to have a group
        try:
            end(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    child.join()


def table(outcomes: list[Outcome]) -> str:
    """What became of all jobs, to be read by people."""
    width = max(len(outcome.job) for outcome in outcomes)
    rows = [f"{each.job:{width}}  {each.status:9}  {each.seconds:6.1f} s  {each.lines:3} lines" for each in outcomes]
    return "\n".join(rows)


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """The same on one line."""
    return {outcome.job: outcome.status for outcome in outcomes}
