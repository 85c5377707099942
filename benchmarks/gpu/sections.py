"""The table of sections, and one section run: a generator of figures whose lines are kept as they come."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results_file import append_result


@dataclass(frozen=True)
class Setup:
    """Where to run and where results go. On the CPU everything is tiny: the paths are walked, nothing is measured."""

    device: str
    out: Path

    @property
    def is_small(self) -> bool:
        """Whether this is a dry run."""
        return self.device == "cpu"

    def lines(self, section: str) -> Path:
        """The JSON lines of a section."""
        return self.out / f"{section}.jsonl"


@dataclass(frozen=True)
class Section:
    """`run` names a generator function of a Setup, as `module:function`; figures with a false `ok` fail the section."""

    run: str
    limit_s: float

    def load(self) -> Callable[[Setup], Iterator[Mapping[str, Any]]]:
        """The function."""
        module, function = self.run.split(":")
        return getattr(importlib.import_module(module), function)


# In this order, the limits together below nine minutes; whoever has more to check adds a line.
SECTIONS = {
    "environment": Section("benchmarks.gpu.environment:run", 25),
    "parity": Section("benchmarks.gpu.parity:run", 120),
    "waits": Section("benchmarks.gpu.waits:run", 30),
    "throughput": Section("benchmarks.gpu.throughput:run", 140),
    "efficiency": Section("benchmarks.gpu.efficiency:run", 75),
    "opuslm_7b": Section("benchmarks.gpu.published:run_opuslm_7b", 55),
    "opuslm_1b7": Section("benchmarks.gpu.published:run_opuslm_1b7", 40),
    "decoder": Section("benchmarks.gpu.decoder:run", 50),
}


def run_section(name: str, section: Section, setup: Setup) -> None:
    """Keep every line; RuntimeError at the end where one was not right."""
    wrong = []
    for figures in section.load()(setup):
        append_result(setup.lines(name), name, {"device": setup.device, **figures})
        if figures.get("ok") is False:
            wrong.append(figures)
    if wrong:
        raise RuntimeError(f"{len(wrong)} results are not right, the first: {wrong[0]}")
