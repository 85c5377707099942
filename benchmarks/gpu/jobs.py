"""Table of jobs, the most informative first, and the code that runs them.

A job is a generator of figures, each of which is written immediately. Jobs run one after another, each in a forked
process group, so that a crash or a hang ends only one job.
"""

import faulthandler
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from benchmarks.harness import Result
from stretto.engine.environment import BATCH_INVARIANT


@dataclass(frozen=True)
class Setup:
    """Device and output folder. On the CPU, everything is tiny: all code paths run, but nothing is measured."""

    device: str
    out: Path

    @property
    def is_small(self) -> bool:
        """True for a dry run."""
        return self.device == "cpu"

    @property
    def results(self) -> Path:
        """File with the JSON lines of all jobs."""
        return self.out / "all.jsonl"

    @property
    def logs(self) -> Path:
        """File with the output of all jobs."""
        return self.out / "logs.txt"


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        run: Generator function of a Setup and `arguments`, as `module:function`.
        limit_s: Time limit in seconds.
        arguments: Keyword arguments of the function.
        environment: Environment variables that a library reads on import. If there are any, the job runs in a new
            interpreter on a GPU.
        reads: Jobs whose results this job compares with. A call without those results runs these jobs first.
    """

    run: str
    limit_s: float
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    reads: tuple[str, ...] = ()

    def load(self) -> Callable[..., Iterator[Mapping[str, Any]]]:
        """Return the function."""
        module, function = self.run.split(":")
        return getattr(importlib.import_module(module), function)


def _decoder(codec: str, limit_s: float) -> Job:
    return Job("benchmarks.gpu.decoder:run", limit_s, {"name": codec})


def _parity(mode: str, limit_s: float) -> Job:
    return Job("benchmarks.gpu.parity:run", limit_s, {"mode": mode})


def _ours(model: str, limit_s: float, **arguments: Any) -> Job:
    return Job("benchmarks.gpu.speed:run_ours", limit_s, {"model": model, **arguments})


def _stock(model: str, limit_s: float, requests: tuple[int, ...]) -> Job:
    arguments = {"model": model, "requests": requests}
    return Job("benchmarks.gpu.speed:run_stock", limit_s, arguments, reads=(f"ours_{model}",))


def _sanitizer(tool: str, limit_s: float) -> Job:
    return Job("benchmarks.gpu.sanitizers:run_tool", limit_s, {"tool": tool, "limit_s": limit_s - 5})


# The most informative jobs come first: whether a step runs, is right and is fast, then whether decoder and engine fit
# beside each other. The time limits of all jobs except `IF_TIME_IS_LEFT` fit into a call of 600 s that also unpacks and
# imports. Later jobs may use time that earlier ones did not need. `plan.py` prints the calls that run all jobs.
JOBS = {
    "host": Job("benchmarks.gpu.host:run", 12),
    "parity_graphs": _parity("FULL_DECODE_ONLY, async", 24),
    "parity_frames": Job("benchmarks.gpu.parity:run_frames", 22),
    "ours_qwen3_tts": _ours("qwen3_tts", 70, requests=(1, 16)),
    "decoder_qwen3_12hz": _decoder("qwen3_12hz", 20),
    "side_by_side": Job("benchmarks.gpu.side_by_side:run", 60),
    "kernels": Job("benchmarks.gpu.kernels:run", 38),
    "step_paths": Job("benchmarks.gpu.step_paths:run", 60),
    "memcheck": _sanitizer("memcheck", 45),
    "parity_compiled": _parity("FULL_AND_PIECEWISE, async", 40),
    "decoder_streams": Job(
        "benchmarks.gpu.sanitizers:run_decoder", 25, {"name": "qwen3_12hz"}, environment={"TORCH_CUDA_SANITIZER": "1"}
    ),
    "parity_bf16": Job("benchmarks.gpu.parity:run_half", 22),
    "decoder_mimi": _decoder("mimi", 20),
    "decoder_xcodec": _decoder("xcodec", 20),
    "waits": Job("benchmarks.gpu.parity:run_waits", 30, environment={"VLLM_GPU_SYNC_CHECK": "error"}),
    "ours_8b": _ours("8b", 100, requests=(1, 32, 16, 64)),
    "stock_8b": _stock("8b", 60, requests=(1, 32, 16)),
    "parity_latents": Job("benchmarks.gpu.parity:run_latents", 120, environment={BATCH_INVARIANT: "1"}),
    "racecheck": _sanitizer("racecheck", 90),
    "schedules_vita": Job("benchmarks.gpu.speed:run", 60, {"requests": (1, 16)}),
    "parity_modules": Job("benchmarks.gpu.parity:run_modules", 14),
    "parity_higgs_audio": Job("benchmarks.gpu.parity:run_higgs_audio", 14),
    "ours_1b7": _ours("1b7", 40, requests=(1, 16)),
    "stock_1b7": _stock("1b7", 30, requests=(1, 16)),
    "parity_eager": _parity("eager", 24),
    "parity_preempted": _parity("FULL_DECODE_ONLY, async, chunked, preempted", 20),
    "decoder_tiny": _decoder("tiny", 20),
    "decoder_espnet_dac": _decoder("espnet_dac", 20),
    "decoder_dac": _decoder("dac_24khz", 20),
    "decoder_higgs": _decoder("higgs", 20),
    "decoder_encodec": _decoder("encodec_24khz", 20),
    "blocks_glm4_voice": Job("benchmarks.gpu.decoder:run_blocks", 12),
    "ours_7b": _ours("7b", 40, requests=(1, 16)),
    "plain_8b": _ours("8b", 34, requests=(1, 32), is_compiled=False),
}
IF_TIME_IS_LEFT = tuple(JOBS)[list(JOBS).index("decoder_mimi") :]

SERVED = {"ensemble": Job("benchmarks.gpu.served:run", 500)}  # needs a Triton server


def run_job(name: str, job: Job, setup: Setup) -> bool:
    """Run a job and write its lines, or its error if it fails; return True if everything was correct."""
    is_right = True
    try:
        for figures in job.load()(setup, **job.arguments):
            append(setup, {"job": name, **figures})
            is_right &= figures.get("ok") is not False
    except Exception as error:
        traceback.print_exc()
        append(setup, {"job": name, **failure(error)})
        return False
    return is_right


def failure(error: Exception) -> dict[str, Any]:
    """Return the fields of a line for an error."""
    return {"error": f"{type(error).__name__}: {error}"[:500], "ok": False}


def append(setup: Setup, figures: Mapping[str, Any]) -> None:
    """Append a line to the results file."""
    with setup.results.open("a") as file:
        file.write(Result("gpu_check", {"device": setup.device, **figures}).to_line() + "\n")


# CUDA error messages. With blocking launches, the stack trace shows the failing call.
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
    """Runner of jobs in child processes.

    If `is_cold`, each job runs in a new interpreter, because a fork of this process cannot use CUDA.
    """

    setup: Setup
    is_cold: bool = False

    def run_all(self, jobs: Mapping[str, Job], limit_s: float) -> list[Outcome]:
        """Run all jobs within `limit_s` seconds; a job may use time that earlier jobs did not need."""
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
        """Run a job in the child: create a process group, redirect output to the log, and run the job."""
        os.setsid()
        log = self.setup.logs.open("a", buffering=1)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.stdout = sys.stderr = log
        print(f"===== {name}, {end_s - time.monotonic():.0f} s", flush=True)
        os.environ.update(job.environment)
        if self.setup.is_small:
            os.environ.pop(BATCH_INVARIANT, None)  # vLLM's CPU build refuses it
        if self.is_cold or (set(job.environment) - set(BLOCKING) and not self.setup.is_small):
            words = [sys.executable, "-m", "benchmarks.gpu", "--one", name, json.dumps(asdict(job)), f"{end_s}"]
            words += ["--device", self.setup.device, "--out", str(self.setup.out)]
            os.execv(sys.executable, words)
        enter_job(name, job, self.setup, end_s)


def enter_job(name: str, job: Job, setup: Setup, end_s: float) -> None:
    """Run a job in this process and exit. After a crash or a hang, the log has the stacks of all threads.

    At `end_s` on the monotonic clock, the parent kills this process; a hang's stacks are printed shortly before.
    """
    faulthandler.disable()  # again, because a library may have replaced the handler
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
    for end in (os.killpg, os.kill):  # kill the child itself too, because it may not have created its group yet
        try:
            end(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    child.join()


def verdicts(setup: Setup) -> list[str]:
    """Return a text line with the last verdict of each job that has one."""
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
