"""Table of jobs, the most informative first, and the code that runs them.

A job is a generator of figures, each of which is written immediately. Each job runs in a forked process group, so that
a crash or a hang ends only one job. Jobs run one after another, except that checks in a row run at the same time on a
GPU.
"""

import faulthandler
import importlib
import itertools
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Result
from stretto.config import DecoderConfig
from stretto.engine.environment import BATCH_INVARIANT


@dataclass(frozen=True)
class Setup:
    """Device and output folder. On the CPU, everything is tiny: all code paths run, but nothing is measured."""

    device: str
    out: Path

    @property
    def is_small(self) -> bool:
        return self.device == "cpu"

    @property
    def results(self) -> Path:
        return self.out / "all.jsonl"

    def free_mib(self) -> int:
        """Return the free memory of the GPU in MiB; 0 in a dry run."""
        return 0 if self.is_small else torch.cuda.mem_get_info()[0] >> 20

    def torch_mib(self) -> int:
        """Return the memory that this process has reserved on the GPU for tensors, in MiB; 0 in a dry run."""
        return 0 if self.is_small else torch.cuda.max_memory_reserved() >> 20

    @property
    def logs(self) -> Path:
        return self.out / "logs.txt"


@dataclass(frozen=True)
class Job:
    """Entry in the table of jobs.

    Attributes:
        run: Generator function of a Setup and `arguments`, as `module:function`.
        environment: Environment variables that a library reads on import. If there are any, the job runs in a new
            interpreter on a GPU.
        reads: Jobs whose results this job compares with. A call without those results runs these jobs first.
        is_check: True if the job measures neither time nor free memory.
    """

    run: str
    limit_s: float
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    is_check: bool = False

    def load(self) -> Callable[..., Iterator[Mapping[str, Any]]]:
        module, function = self.run.split(":")
        return getattr(importlib.import_module(module), function)


# Seconds of a decoder's job besides its passes over the batches, of the start of a pass, and the number of passes:
# without graphs, and with them for each kind of convolutions. On an H200, Qwen3-TTS's codec took 23 s before the
# passes, then 35 s a pass in float32, of which 28 s were decoding.
DECODER_S = 30.0
PASS_S = 10.0
NUM_PASSES = 1 + len(DecoderConfig.CONVOLUTIONS)


def _decoder(codec: str, decoding_s: float) -> Job:
    """Return a codec's job. `decoding_s` is measured for Qwen3-TTS, and estimated from operations for the others."""
    return Job("benchmarks.gpu.decoder:run", DECODER_S + NUM_PASSES * (PASS_S + decoding_s), {"name": codec})


def _parity(mode: str) -> Job:
    return _check("parity:run", CHECK_S, {"mode": mode})


def _check(
    function: str,
    limit_s: float,
    arguments: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Job:
    return Job(f"benchmarks.gpu.{function}", limit_s, arguments or {}, environment or {}, is_check=True)


def _ours(model: str, limit_s: float, **arguments: Any) -> Job:
    return Job("benchmarks.gpu.speed:run_ours", limit_s, {"model": model, **arguments})


def _stock(model: str, limit_s: float, requests: tuple[int, ...]) -> Job:
    arguments = {"model": model, "requests": requests}
    return Job("benchmarks.gpu.speed:run_stock", limit_s, arguments, reads=(f"ours_{model}",))


def _sanitizer(tool: str) -> Job:
    return _check("sanitizers:run_tool", CHECK_S, arguments={"tool": tool, "limit_s": CHECK_S - 5})


def _served(convolutions: str, limit_s: float = 260, **options: Any) -> Job:
    return Job("benchmarks.gpu.served:run_shape", limit_s, {"convolutions": convolutions, **options})


# ten checks at once took 75 s on 16 cores, most of it the slow reference
CHECK_S = 110.0
LONG_CHECK_S = 210.0


# The most informative jobs come first: whether results are right, whether a step is fast. The time limits of all jobs
# except `IF_TIME_IS_LEFT` fit into a call of 600 s that also unpacks and imports. Later jobs may use time that earlier
# ones did not need. `plan.py` prints the calls that run all jobs. With an empty cache, engines of 1.7 billion weights
# took 41 to 45 s to start, those of 8 billion 48 to 79 s. Stock vLLM compiles a model of its own.
JOBS = {
    "host": Job("benchmarks.gpu.host:run", 12),
    "parity_graphs": _parity("FULL_DECODE_ONLY, async"),
    "parity_frames": _check("parity:run_others", CHECK_S, {"name": "frames"}),
    "parity_compiled": _parity("FULL_AND_PIECEWISE, async"),
    "parity_bf16": _check("parity:run_half", CHECK_S),
    "waits": _check("parity:run_waits", CHECK_S, environment={"VLLM_GPU_SYNC_CHECK": "error"}),
    "parity_modules": _check("parity:run_others", CHECK_S, {"name": "modules"}),
    "parity_higgs_audio": _check("parity:run_others", CHECK_S, {"name": "higgs_audio"}),
    "parity_preempted": _parity("FULL_DECODE_ONLY, async, chunked, preempted"),
    "parity_eager": _parity("eager"),
    "decoder_streams": _check(
        "sanitizers:run_decoder", CHECK_S, arguments={"name": "qwen3_12hz"}, environment={"TORCH_CUDA_SANITIZER": "1"}
    ),
    "ours_qwen3_tts": _ours("qwen3_tts", 70, requests=(1, 16)),
    "kernels": Job("benchmarks.gpu.kernels:run", 65),
    "depth": Job("benchmarks.gpu.depth:run", 35),
    "decoder_qwen3_12hz": _decoder("qwen3_12hz", 28),
    "whole_qwen3_tts": _ours("qwen3_tts", 70, requests=(1, 16), mode="whole"),
    "ours_8b": _ours("8b", 140, requests=(1, 32, 16, 64)),
    "stock_8b": _stock("8b", 120, requests=(1, 32, 16)),
    "parity_latents": _check("parity:run_latents", LONG_CHECK_S, environment={BATCH_INVARIANT: "1"}),
    "planted": _check("sanitizers:run_planted", CHECK_S, arguments={"limit_s": CHECK_S - 5}),
    "memcheck": _sanitizer("memcheck"),
    "racecheck": _sanitizer("racecheck"),
    "decoder_mimi": _decoder("mimi", 3),
    "decoder_xcodec": _decoder("xcodec", 5),
    "ours_1b7": _ours("1b7", 70, requests=(1, 16)),
    "stock_1b7": _stock("1b7", 60, requests=(1, 16)),
    "decoder_tiny": _decoder("tiny", 1),
    "decoder_espnet_dac": _decoder("espnet_dac", 1),
    "decoder_dac": _decoder("dac_24khz", 10),
    "decoder_higgs": _decoder("higgs", 6),
    "ours_7b": _ours("7b", 120, requests=(1, 16)),
    "plain_8b": _ours("8b", 60, requests=(1, 32), mode="plain"),
}
IF_TIME_IS_LEFT = tuple(JOBS)[list(JOBS).index("decoder_qwen3_12hz") :]

# These need a Triton server.
SERVED = {
    "ensemble": Job("benchmarks.gpu.served:run", 280),
    "served_qwen3_tts": _served("float32"),
    "served_exact": _served("exact"),
    "served_bfloat16": _served("bfloat16"),
    "served_mps": _served("exact", mps_share=25),
}

# The most valuable figures of fifteen minutes on an H100, in a call that runs after one that only installs a bundle:
# where a first chunk's time goes, and whether the server answers 20 requests a second early. The first server has all
# that shortens the first audio; the others lack the first chunk in the engine and the late submission, then the codec
# on tensor cores. The jobs of `IF_QUARTER_HAS_TIME` run if the others leave time.
SHORT: dict[str, Any] = {"streams": (1,), "frames": (55,), "rates": (20.0, 1.0), "warm_up_s": 5.0}
QUARTER = {
    "host": Job("benchmarks.gpu.host:run", 15),
    "codec": Job("benchmarks.gpu.decoder:run_speed", 70, {"name": "qwen3_12hz"}),
    "depth": Job("benchmarks.gpu.depth:run", 35),
    "engine": _ours("qwen3_tts", 60, requests=(1, 16, 64), mode="whole"),
    "server": _served("exact", 110, serving="latency", **SHORT),
    "server_exact": _served("exact", 75, mode="whole", **SHORT | {"streams": ()}),
    "server_float32": _served("float32", 75, mode="whole", **SHORT | {"streams": ()}),
    "server_mps": _served("exact", 75, mode="whole", mps_share=25, **SHORT | {"streams": ()}),
    "stock": Job("benchmarks.gpu.speed:run_stock", 45, {"model": "qwen3_tts", "requests": (1, 16, 64)}),
    "peers": Job("benchmarks.gpu.peers:run", 45),
    "engine_pieces": _ours("qwen3_tts", 40, requests=(1, 16)),
}
IF_QUARTER_HAS_TIME = ("peers", "engine_pieces")


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
    with setup.results.open("a") as file:
        file.write(Result("gpu_check", {"device": setup.device, **figures}).to_line() + "\n")


# CUDA error messages. With blocking launches, the stack trace shows the failing call.
ILLEGAL_ACCESS = (b"illegal memory access", b"CUDA_ERROR_ILLEGAL_ADDRESS")
BLOCKING = {"CUDA_LAUNCH_BLOCKING": "1"}
FAILED = 1
# signal for printing the stacks of all threads, and the time for it
STACKS = signal.SIGUSR1
PRINTING_S = 0.5


@dataclass(frozen=True)
class Outcome:
    job: str
    status: str
    seconds: float = 0.0
    lines: int = 0


@dataclass(frozen=True)
class Attempt:
    """Outcome of a job. `has_faulted` is True if it has made an illegal memory access."""

    outcome: Outcome
    has_faulted: bool


def groups(jobs: Mapping[str, Job]) -> Iterator[dict[str, Job]]:
    """Divide jobs into those that run at the same time: checks in a row, and every other job alone."""
    for is_check, names in itertools.groupby(jobs, lambda name: jobs[name].is_check):
        group = {name: jobs[name] for name in names}
        yield from [group] if is_check else ({name: job} for name, job in group.items())


def seconds_of(jobs: Mapping[str, Job]) -> float:
    """Return the time limit of jobs on a GPU in seconds."""
    return sum(max(job.limit_s for job in group.values()) for group in groups(jobs))


@dataclass(frozen=True)
class Children:
    """Runner of jobs in child processes. With `is_cold`, these are new interpreters, because a fork cannot use CUDA."""

    setup: Setup
    is_cold: bool = False

    def run_all(self, jobs: Mapping[str, Job], limit_s: float) -> list[Outcome]:
        """Run all jobs within `limit_s` seconds. A job may use time that earlier jobs did not need."""
        begun = time.monotonic()
        planned = begun
        outcomes = list[Outcome]()
        for group in groups(jobs) if not self.setup.is_small else ({name: job} for name, job in jobs.items()):
            own_s = seconds_of(group)
            planned += own_s
            now = time.monotonic()
            left = min(max(own_s, planned - now), begun + limit_s - now)
            outcomes += self._run(group, left) if left >= 1 else self._not_run(group)
        return outcomes

    def _not_run(self, group: Mapping[str, Job]) -> list[Outcome]:
        outcomes = [Outcome(name, "not run") for name in group]
        for outcome in outcomes:
            self._report(outcome)
        return outcomes

    def _run(self, group: Mapping[str, Job], limit_s: float) -> list[Outcome]:
        """Run jobs at the same time; after an illegal memory access, run a job again with synchronous launches."""
        outcomes = list[Outcome]()
        for attempt in self._attempt(group, limit_s):
            outcomes.append(attempt.outcome)
            self._report(attempt.outcome)
            if attempt.outcome.status == "passed" or not attempt.has_faulted:
                continue
            name = attempt.outcome.job
            job = group[attempt.outcome.job]
            again = replace(job, environment={**job.environment, **BLOCKING})
            (second,) = self._attempt({f"{name} (blocking)": again}, limit_s)
            outcomes.append(second.outcome)
            self._report(second.outcome)
        return outcomes

    def _attempt(self, group: Mapping[str, Job], limit_s: float) -> list[Attempt]:
        """Run jobs in a process each and wait for them; append their output to the log, job by job."""
        begun = time.monotonic()
        attempts = list[Attempt]()
        with tempfile.TemporaryDirectory() as folder:
            children = dict[str, tuple[ForkProcess, Path]]()
            for name, job in group.items():
                output = Path(folder) / str(len(children))
                output.touch()  # the job may be killed before it has written a line
                arguments = name, job, begun + limit_s, output
                child = multiprocessing.get_context("fork").Process(target=self._enter, args=arguments)
                children[name] = child, output
                child.start()
            for name, (child, output) in children.items():
                try:
                    child.join(max(0.0, begun + limit_s - time.monotonic()))
                    status = _status(child)
                    if child.exitcode is None:
                        _ask_for_stacks(child)
                finally:
                    _end_group(child)
                    text = output.read_bytes()
                    with self.setup.logs.open("ab") as log:
                        log.write(text)
                outcome = Outcome(name, status, round(time.monotonic() - begun, 1), self._num_lines(name))
                attempts.append(Attempt(outcome, any(words in text for words in ILLEGAL_ACCESS)))
        return attempts

    def _num_lines(self, name: str) -> int:
        lines = self.setup.results.read_text().splitlines() if self.setup.results.exists() else []
        return sum(json.loads(line)["job"] == name for line in lines)

    def _report(self, outcome: Outcome) -> None:
        append(self.setup, asdict(outcome))
        print(f"{outcome.job}: {outcome.status}, {outcome.seconds} s", flush=True)

    def _enter(self, name: str, job: Job, end_s: float, output: Path) -> None:
        """Create a process group in the child, redirect output to a file, and run the job."""
        os.setsid()
        log = output.open("a", buffering=1)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.stdout = sys.stderr = log
        print(f"===== {name}, {end_s - time.monotonic():.0f} s", flush=True)
        os.environ.update(job.environment)
        if self.setup.is_small:
            os.environ.pop(BATCH_INVARIANT, None)  # vLLM's CPU build refuses it
        if self.is_cold or (set(job.environment) - set(BLOCKING) and not self.setup.is_small):
            words = [sys.executable, "-m", "benchmarks.gpu", "--one", name, json.dumps(asdict(job))]
            words += ["--device", self.setup.device, "--out", str(self.setup.out)]
            os.execv(sys.executable, words)
        enter_job(name, job, self.setup)


def enter_job(name: str, job: Job, setup: Setup) -> None:
    """Run a job in this process and exit. After a crash or a hang, the log has the stacks of all threads."""
    faulthandler.disable()  # again, because a library may have replaced the handler
    faulthandler.enable()
    # Not `dump_traceback_later`: its thread reads the frames of running threads, which may end the process by SIGSEGV.
    faulthandler.register(STACKS)
    if job.is_check:  # ten run at once, and threads that wait for one another's slow reference take all cores
        torch.set_num_threads(1)
    sys.exit(0 if run_job(name, job, setup) else FAILED)


def _status(child: ForkProcess) -> str:
    if child.exitcode is None:
        return "timed out"
    if child.exitcode < 0:
        return signal.Signals(-child.exitcode).name
    return "passed" if child.exitcode == 0 else "failed"


def _ask_for_stacks(child: ForkProcess) -> None:
    """Make a job that exceeds its limit print the stacks of its threads."""
    assert child.pid is not None
    os.kill(child.pid, STACKS)
    child.join(PRINTING_S)


def _end_group(child: ForkProcess) -> None:
    """Kill a child and its process group, which includes engine and worker processes."""
    assert child.pid is not None
    for end in (os.killpg, os.kill):  # kill the child itself too, because it may not have created its group yet
        try:
            end(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    child.join()


def table(outcomes: list[Outcome]) -> str:
    width = max(len(outcome.job) for outcome in outcomes)
    rows = [
        f"{outcome.job:{width}}  {outcome.status:9}  {outcome.seconds:6.1f} s  {outcome.lines:3} lines"
        for outcome in outcomes
    ]
    return "\n".join(rows)


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    return {outcome.job: outcome.status for outcome in outcomes}
