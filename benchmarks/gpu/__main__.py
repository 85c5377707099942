"""Check and measure the engine and the decoder on a host with a GPU, in one call of ten minutes.

    python -m benchmarks.gpu --out DIR             # on the GPU
    python -m benchmarks.gpu --out DIR --dry-run   # tiny jobs on the CPU: run all code paths, measure nothing
    python -m benchmarks.gpu plan                  # prints the command lines for a host without a network

Jobs (`jobs.py`) run one after another, each in its own process, the most informative first. If a job fails, crashes or
hangs, the others still run. DIR/all.jsonl gets a line for each figure and for the outcome of each job; DIR/logs.txt
gets everything that is printed. Both are written as the jobs run. Standard output ends with a table of the jobs.
"""

import argparse
import gc
import importlib
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu import plan
from benchmarks.gpu.jobs import JOBS, Children, Job, Setup, enter_job, summary, table
from benchmarks.harness import know_this_host
from stretto.engine.environment import is_cpu_build, prepare_environment

# All traffic stays on the host, because its interfaces may have no address. NVML lists devices without initialising
# CUDA. vLLM's own sampler, which Stretto replaces, must not import flashinfer, which the bundle leaves out.
ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    "VLLM_HOST_IP": "127.0.0.1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
# Imported once, before the jobs fork. Modules that initialise CUDA on import must not be listed (`can_fork`).
PRELOADED = ("torch", "vllm", "vllm.engine.arg_utils", "vllm.v1.engine.core", "stretto.engine.llm")
PRELOADED_ON_THE_CPU = ("vllm.v1.worker.cpu_worker", "vllm.v1.worker.gpu.model_runner", "benchmarks.gpu.speed")


def preload(is_small: bool) -> None:
    """Import the modules that jobs need, and exclude their objects from garbage collection in all children.

    A dry run also loads vLLM's plugins, which each engine would otherwise load in its own process.
    """
    for module in (*PRELOADED, *(PRELOADED_ON_THE_CPU if is_small else ())):
        importlib.import_module(module)
    if is_small:
        importlib.import_module("vllm.plugins").load_general_plugins()
    gc.collect()
    gc.freeze()


def can_fork() -> bool:
    """Return True if a forked child can use CUDA, that is, if this process has not initialised CUDA."""

    def touch() -> None:
        import torch

        torch.cuda.init()

    child = multiprocessing.get_context("fork").Process(target=touch)
    child.start()
    child.join()
    return child.exitcode == 0


def parse(
    line: Iterable[str] | None = None, jobs: Mapping[str, Job] = JOBS, description: str | None = __doc__
) -> argparse.Namespace:
    """Parse the command line of a module that runs `jobs`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder for the two output files")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dry-run", dest="device", action="store_const", const="cpu", help="same as --device cpu")
    parser.add_argument("--jobs", nargs="+", choices=list(jobs), default=list(jobs))
    parser.add_argument("--limit-s", type=float, default=530.0, help="time limit for all jobs together, in seconds")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "JOB"), help=argparse.SUPPRESS)
    return parser.parse_args(None if line is None else list(line))


def main(arguments: argparse.Namespace, jobs: Mapping[str, Job] = JOBS) -> int:
    os.environ.update(ENVIRONMENT)
    prepare_environment()
    setup = Setup(arguments.device, arguments.out.resolve())
    if arguments.one:
        name, job = arguments.one
        enter_job(name, Job(**json.loads(job)), setup)
    if not setup.is_small and is_cpu_build():
        raise SystemExit("gpu_check: this vLLM is built for the CPU; use --dry-run to run the same code there")
    setup.out.mkdir(parents=True, exist_ok=True)
    know_this_host()
    preload(setup.is_small)
    children = Children(setup, is_cold=not setup.is_small and not can_fork())
    chosen = {name: jobs[name] for name in arguments.jobs}
    if setup.is_small:  # time limits hold for a GPU only
        chosen = {name: replace(job, limit_s=arguments.limit_s) for name, job in chosen.items()}
    outcomes = children.run_all(chosen, arguments.limit_s)
    print(table(outcomes))
    print(json.dumps(summary(outcomes)), flush=True)
    gc.unfreeze()  # or Triton's bindings report leaks after the last line
    gc.collect()
    return int(any(outcome.status != "passed" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(plan.main(plan.parse(sys.argv[2:])) if sys.argv[1:2] == ["plan"] else main(parse()))
