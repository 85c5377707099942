"""Table of jobs, the most informative first, and execution of one: a generator of figures, written immediately."""

import importlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import Result


@dataclass(frozen=True)
class Setup:
    """Device and output folder. On the CPU everything is tiny: all code paths run, nothing is measured."""

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
        environment: Variables that a library reads on import, so on a GPU the job runs in a new interpreter.
        reads: Jobs whose results it compares with. A call that has no results of them runs them first.
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


# The most informative first. The limits of all but `IF_TIME_IS_LEFT` fit one call of 600 s with unpacking and imports;
# later jobs may use time that earlier ones left. `plan.py` prints the calls that run all of them.
JOBS = {
    "host": Job("benchmarks.gpu.host:run", 12),
    "kernels": Job("benchmarks.gpu.kernels:run", 38),
    "step_paths": Job("benchmarks.gpu.step_paths:run", 60),
    "memcheck": _sanitizer("memcheck", 45),
    "parity_graphs": _parity("FULL_DECODE_ONLY, async", 24),
    "parity_frames": Job("benchmarks.gpu.parity:run_frames", 22),
    "ours_qwen3_tts": _ours("qwen3_tts", 70, requests=(1, 16)),
    "parity_compiled": _parity("FULL_AND_PIECEWISE, async", 40),
    "decoder_qwen3_12hz": _decoder("qwen3_12hz", 20),
    "decoder_xcodec": _decoder("xcodec", 20),
    "decoder_streams": Job(
        "benchmarks.gpu.sanitizers:run_decoder", 25, {"name": "qwen3_12hz"}, environment={"TORCH_CUDA_SANITIZER": "1"}
    ),
    "parity_bf16": Job("benchmarks.gpu.parity:run_half", 22),
    "waits": Job("benchmarks.gpu.waits:run", 30, environment={"VLLM_GPU_SYNC_CHECK": "error"}),
    "ours_8b": _ours("8b", 100, requests=(1, 32, 16, 64)),
    "parity_eager": _parity("eager", 24),
    "stock_8b": _stock("8b", 60, requests=(1, 32, 16)),
    "schedules_vita": Job("benchmarks.gpu.schedules:run", 60, {"requests": (1, 16)}),
    "parity_modules": Job("benchmarks.gpu.parity:run_modules", 14),
    "parity_higgs_audio": Job("benchmarks.gpu.parity:run_higgs_audio", 14),
    "parity_preempted": _parity("FULL_DECODE_ONLY, async, chunked, preempted", 20),
    "racecheck": _sanitizer("racecheck", 90),
    "decoder_mimi": _decoder("mimi", 20),
    "decoder_tiny": _decoder("tiny", 20),
    "ours_1b7": _ours("1b7", 40, requests=(1, 16)),
    "stock_1b7": _stock("1b7", 30, requests=(1, 16)),
    "decoder_espnet_dac": _decoder("espnet_dac", 20),
    "decoder_dac": _decoder("dac_24khz", 20),
    "decoder_higgs": _decoder("higgs", 20),
    "decoder_encodec": _decoder("encodec_24khz", 20),
    "blocks_glm4_voice": Job("benchmarks.gpu.blocks:run", 12),
    "ours_7b": _ours("7b", 40, requests=(1, 16)),
    "plain_8b": _ours("8b", 34, requests=(1, 32), is_compiled=False),
}
IF_TIME_IS_LEFT = tuple(JOBS)[list(JOBS).index("parity_eager") :]

SERVED = {"ensemble": Job("benchmarks.gpu.served:run", 500)}  # needs a Triton server


def run_job(name: str, job: Job, setup: Setup) -> bool:
    """Write every line of a job, and its error if it fails; return True if everything was correct."""
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
