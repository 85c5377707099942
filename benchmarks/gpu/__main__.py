"""Runs the sections one after another; one that fails or takes too long does not stop the others."""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.sections import SECTIONS, Section, Setup, run_section
from benchmarks.results_file import append_result

TAIL = 1500  # characters of a failed section's log that go into the summary


def run_apart(name: str, section: Section, setup: Setup) -> dict[str, Any]:
    """One section in a process group of its own, ended at its limit; what became of it."""
    log = setup.out / f"{name}.log"
    command = [sys.executable, "-m", "benchmarks.gpu", "--one", name, section.run]
    command += ["--device", setup.device, "--out", str(setup.out)]
    start = time.monotonic()
    with log.open("w") as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = "passed" if child.wait(section.limit_s) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "timed out"
        finally:
            _end_group(child.pid)
            child.wait()
    seconds = round(time.monotonic() - start, 1)
    record = {"section": name, "status": status, "seconds": seconds, "limit_s": section.limit_s, "device": setup.device}
    return record if status == "passed" else {**record, "log": log.read_text(errors="replace")[-TAIL:]}


def _end_group(group: int) -> None:
    """End whatever a section has left: engine and worker processes are in its group."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def run_all(sections: Mapping[str, Section], setup: Setup, limit_s: float) -> list[dict[str, Any]]:
    """All sections, none beyond `limit_s` seconds from now; a line each in `summary.jsonl`."""
    setup.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + limit_s
    records = []
    for name, section in sections.items():
        left = min(section.limit_s, end - time.monotonic())
        if left < 1:
            record = {"section": name, "status": "not run", "limit_s": section.limit_s, "device": setup.device}
        else:
            record = run_apart(name, Section(section.run, left), setup)
        append_result(setup.out / "summary.jsonl", "gpu_check", record)
        records.append(record)
    return records


def stretched(sections: Mapping[str, Section], limit_s: float) -> dict[str, Section]:
    """`sections`, each with its share of `limit_s` where they are given more time together than they ask for."""
    share = max(1.0, limit_s / sum(section.limit_s for section in sections.values()))
    return {name: replace(section, limit_s=share * section.limit_s) for name, section in sections.items()}


def device(wanted: str) -> str:
    """`cuda` or `cpu`; SystemExit where a GPU is wanted and there is none."""
    import torch

    found = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and found != "cuda":
        raise SystemExit("gpu_check: torch sees no CUDA device; --dry-run walks the same paths on the CPU")
    return found if wanted == "auto" else wanted


def parse(line: Iterable[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="where results go")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")
    parser.add_argument("--dry-run", dest="device", action="store_const", const="cpu", help="the same as --device cpu")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    shared = "seconds for all sections together; what none asks for they share"
    parser.add_argument("--limit-s", type=float, default=530.0, help=shared)
    parser.add_argument("--one", nargs=2, metavar=("NAME", "FUNCTION"), help=argparse.SUPPRESS)
    return parser.parse_args(None if line is None else list(line))


def main(arguments: argparse.Namespace) -> int:
    """The exit status: 0 when every section passed."""
    setup = Setup(device(arguments.device), arguments.out)
    if arguments.one:
        name, function = arguments.one
        run_section(name, Section(function, 0), setup)
        return 0
    chosen = stretched({name: SECTIONS[name] for name in arguments.sections}, arguments.limit_s)
    records = run_all(chosen, setup, arguments.limit_s)
    return int(any(record["status"] != "passed" for record in records))


if __name__ == "__main__":
    sys.exit(main(parse()))
