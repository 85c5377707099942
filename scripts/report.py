"""Draws the curves of benchmarks/results/*.jsonl into benchmarks/plots/: the latest measurement of every point.

python -m scripts.report [--results benchmarks/results] [--plots benchmarks/plots]
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Plot:
    """One picture: `fields` (dotted where nested) of the lines of a benchmark over their field `over`.

    only: values that a line must have to be drawn. goal: a level drawn as a dashed line.
    """

    name: str
    benchmark: str
    over: str
    fields: tuple[str, ...]
    title: str
    label: str
    only: Mapping[str, Any] = field(default_factory=dict)
    goal: float | None = None


PLOTS = (
    Plot(
        "speech_retention",
        "speech",
        "concurrency",
        ("cfg_retention", "triton_tax"),
        "The ensemble: throughput kept under guidance, and what Triton costs",
        "ratio",
    ),
    Plot(
        "speech_latency",
        "speech",
        "concurrency",
        ("audio_ttfp_p50", "audio_ttfp_p95", "first_sound_p50", "itl_p95"),
        "The ensemble: when sound arrives",
        "seconds",
    ),
    Plot(
        "speech_throughput",
        "speech",
        "concurrency",
        ("audio_throughput_guided", "audio_throughput_unguided", "audio_throughput_engine"),
        "The ensemble: seconds of audio per second",
        "s/s",
    ),
    Plot(
        "engine_retention",
        "engine",
        "requests",
        ("cfg_retention", "engine_efficiency", "engine_efficiency_unguided"),
        "The engine's decode steps: guided against unguided, and against stock vLLM",
        "ratio",
        goal=0.85,
    ),
    Plot(
        "decoder_live",
        "decoder_live",
        "streams",
        ("audio_ttfp_p50", "audio_ttfp_p95", "itl_p50", "audio_underrun_p50", "audio_underrun_p95"),
        "The decoder alone: live streams of the bundled codec, frames as fast as they are played",
        "seconds",
        only={"codec": "tiny", "device": "cpu", "frames_per_s": 25.0, "clock": "processor"},
    ),
)


def read_results(folder: Path) -> list[Record]:
    """All lines of all result files, oldest first."""
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return sorted((json.loads(line) for line in lines if line), key=lambda record: record["time"])


def value(record: Record, name: str) -> Any:
    """The field called `name`, `a.b` for field b of record a; None where there is none."""
    found: Any = record
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def points(records: Iterable[Record], plot: Plot) -> dict[float, Record]:
    """The latest record at each place on the axis of `plot`, in order."""
    latest = {
        value(record, plot.over): record
        for record in records
        if record["benchmark"] == plot.benchmark
        and value(record, plot.over) is not None
        and all(value(record, name) == wanted for name, wanted in plot.only.items())
    }
    return dict(sorted(latest.items()))


def draw(plot: Plot, found: Mapping[float, Record], folder: Path) -> Path:
    """Write one picture and say where."""
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name in plot.fields:
        line = {place: value(record, name) for place, record in found.items() if value(record, name) is not None}
        axes.plot(list(line), list(line.values()), marker="o", label=name)
    if plot.goal is not None:
        axes.axhline(plot.goal, linestyle="--", color="grey", label=f"goal {plot.goal:g}")
    if all(place > 0 for place in found):
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(found), [f"{place:g}" for place in found])
    axes.set_ylim(bottom=0)
    axes.set(title=plot.title, xlabel=plot.over, ylabel=plot.label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    path = folder / f"{plot.name}.png"
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
    return path


def main(arguments: argparse.Namespace) -> None:
    """Draw every plot for which there are results."""
    records = read_results(arguments.results)
    arguments.plots.mkdir(parents=True, exist_ok=True)
    for plot in PLOTS:
        found = points(records, plot)
        print(draw(plot, found, arguments.plots) if found else f"{plot.name}: no results")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--plots", type=Path, default=Path("benchmarks/plots"))
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
