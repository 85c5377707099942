"""Plot the latest value of every point in benchmarks/results/*.jsonl, for the result pages.

python -m benchmarks.report [--results benchmarks/results] [--plots benchmarks/plots]
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
from matplotlib.axes import Axes

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Plot:
    """A plot of result fields over the field `over`: curves, or bars if the values of `over` are names.

    Attributes:
        fields: Names of the fields to plot, with dots if nested.
        by: Field that splits the lines into groups; each of its values gets its own curves.
        only: Field values that a line must have to be drawn.
        knee: Field with the position on the axis that is marked as the knee.
    """

    name: str
    benchmark: str
    over: str
    fields: tuple[str, ...]
    title: str
    label: str
    by: str | None = None
    only: Mapping[str, Any] = field(default_factory=dict)
    knee: str | None = None


PLOTS = (
    Plot("open_loop", "open_loop", "rate", ("first_sound_p50", "first_sound_p95", "refused"),
         "Open loop: first audible sample and share refused, by first-frame target", "seconds, share",
         by="first_frame_target", knee="knee"),
    Plot("frame_parts", "frame_parts", "requests",
         tuple(f"cpu_ms_per_frame.{part}" for part in ("talker", "predictor", "rest", "codec")),
         "Small Qwen3-TTS: processor time of a frame by part", "ms", only={"family": "qwen3-tts-small"}),
    Plot("schedules_ids", "schedules", "streams", ("over_vanilla", "allowed"),
         "VITA-Audio schedules: ids per second of processor time, relative to one id per forward pass", "ratio",
         by="schedule"),
    Plot("schedules_passes", "schedules", "schedule", ("passes_to_first_code", "passes_to_first_block"),
         "VITA-Audio schedules: forward passes before the first sound", "forward passes"),
)  # fmt: skip


def read_results(folder: Path) -> list[Record]:
    """Return all lines of all result files, oldest first."""
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return sorted((json.loads(line) for line in lines if line), key=lambda record: record["time"])


def value(record: Record, name: str) -> Any:
    """Return the field `name` of a record, or None; `a.b` is field b of the nested record a."""
    found: Any = record
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def points(records: Iterable[Record], plot: Plot) -> dict[Any, Record]:
    """Return the latest record for each position on the axis of `plot`, in order."""
    latest = {
        value(record, plot.over): record
        for record in records
        if record["benchmark"] == plot.benchmark
        and value(record, plot.over) is not None
        and all(value(record, name) == wanted for name, wanted in plot.only.items())
    }
    return dict(sorted(latest.items()))


def groups(records: Iterable[Record], plot: Plot) -> dict[str, dict[Any, Record]]:
    """Group the points by the values of `plot.by`; keys are the prefixes of legend entries."""
    if plot.by is None:
        found = {"": points(records, plot)}
    else:
        name = plot.by
        kept = list(records)
        values = sorted({value(record, name) for record in kept if record["benchmark"] == plot.benchmark})
        found = {
            f"{each}: ": points([record for record in kept if value(record, name) == each], plot) for each in values
        }
    return {name: group for name, group in found.items() if group}


def draw(plot: Plot, found: Mapping[str, Mapping[Any, Record]], folder: Path) -> Path:
    """Write one plot to a file and return its path."""
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    places = sorted({place for records in found.values() for place in records})
    if all(isinstance(place, str) for place in places):
        draw_bars(axes, plot, found[""])
    else:
        draw_curves(axes, plot, found)
        if all(place > 0 for place in places):
            axes.set_xscale("log", base=2)
            axes.set_xticks(places, [f"{place:g}" for place in places])
    knees = [found_at for records in found.values() for found_at in knee_of(records, plot)]
    for place in knees:
        axes.axvline(place, linestyle=":", color="grey", label=f"knee {place:g}")
    axes.set_ylim(bottom=0)
    axes.set_title(plot.title, fontsize=10)
    axes.set(xlabel=plot.over, ylabel=plot.label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    path = folder / f"{plot.name}.png"
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
    return path


def knee_of(records: Mapping[Any, Record], plot: Plot) -> list[float]:
    """Return a list with the knee's position from the latest measurement that has one; empty if none has."""
    latest = sorted(records.values(), key=lambda record: record["time"])
    marked = [value(record, plot.knee) for record in latest if plot.knee is not None]
    return [place for place in marked if place is not None][-1:]


def draw_curves(axes: Axes, plot: Plot, found: Mapping[str, Mapping[Any, Record]]) -> None:
    """Draw a curve for each group and field. Groups differ in colour; fields within a group differ in dashes."""
    for color, (group, records) in enumerate(found.items()):
        for dashes, name in enumerate(plot.fields):
            line = {place: value(record, name) for place, record in records.items() if value(record, name) is not None}
            style: dict[str, Any] = {"color": f"C{color}", "linestyle": ("-", "--", ":")[dashes % 3]} if plot.by else {}
            if line:
                axes.plot(list(line), list(line.values()), marker="o", label=group + name, **style)


def draw_bars(axes: Axes, plot: Plot, records: Mapping[str, Record]) -> None:
    """Draw adjacent bars for the fields, labelled with their heights."""
    width = 0.8 / len(plot.fields)
    for index, name in enumerate(plot.fields):
        starts = [place + index * width for place in range(len(records))]
        bars = axes.bar(starts, [value(record, name) for record in records.values()], width, label=name)
        axes.bar_label(bars)
    axes.set_xticks([place + (0.8 - width) / 2 for place in range(len(records))], list(records))


def main(arguments: argparse.Namespace) -> None:
    """Draw every plot that has results."""
    records = read_results(arguments.results)
    arguments.plots.mkdir(parents=True, exist_ok=True)
    for plot in PLOTS:
        found = groups(records, plot)
        print(draw(plot, found, arguments.plots) if found else f"{plot.name}: no results")


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--plots", type=Path, default=Path("benchmarks/plots"))
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
