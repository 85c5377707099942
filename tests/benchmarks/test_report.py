"""Result lines become points and pictures; the latest measurement of a point is used."""

import argparse
import json
from pathlib import Path

from matplotlib import pyplot

from benchmarks.report import PLOTS, Plot, draw_bars, groups, main, points, read_results

PLOT = Plot("p", "engine", "requests", ("a.b",), "title", "ratio", only={"layout": "small"})


def write(folder: Path, name: str, records: list[dict]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))


def record(requests: int, time: str, figure: float, **more: object) -> dict:
    return {
        "benchmark": "engine", "requests": requests, "time": time, "a": {"b": figure}, "layout": "small", **more
    }  # fmt: skip


def test_report_uses_the_latest_result_across_files(tmp_path: Path) -> None:
    write(tmp_path, "b.jsonl", [record(4, "2", 0.4), record(1, "1", 0.1)])
    write(tmp_path, "a.jsonl", [record(4, "3", 0.5), record(8, "1", 0.8, layout="other")])
    found = points(read_results(tmp_path), PLOT)
    assert {place: line["a"]["b"] for place, line in found.items()} == {1: 0.1, 4: 0.5}


def test_every_plot_with_results_is_drawn(tmp_path: Path) -> None:
    parts = next(plot for plot in PLOTS if plot.name == "frame_parts")
    lines = [
        {"benchmark": "frame_parts", "requests": n, "time": "1", "cpu_ms_per_frame": {"talker": 0.5}, **parts.only}
        for n in (1, 4)
    ]
    write(tmp_path / "results", "families.jsonl", lines)
    main(argparse.Namespace(results=tmp_path / "results", plots=tmp_path / "plots"))
    pictures = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert f"{parts.name}.png" in pictures
    assert not any(name.startswith("open") for name in pictures)
    assert (tmp_path / "plots" / f"{parts.name}.png").read_bytes().startswith(b"\x89PNG")


def test_plot_over_names_has_a_bar_per_field(tmp_path: Path) -> None:
    passes = next(plot for plot in PLOTS if plot.name == "schedules_passes")
    lines = [
        {"benchmark": "schedules", "schedule": name, "time": "1", passes.fields[0]: 1, passes.fields[1]: number}
        for name, number in (("turbo", 5), ("vanilla", 51))
    ]
    axes = pyplot.figure().add_subplot()
    draw_bars(axes, passes, {line["schedule"]: line for line in lines})
    assert [bar.get_height() for bar in axes.patches] == [1, 1, 5, 51]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["turbo", "vanilla"]
    write(tmp_path / "results", "schedules.jsonl", lines)
    main(argparse.Namespace(results=tmp_path / "results", plots=tmp_path / "plots"))
    assert (tmp_path / "plots" / "schedules_passes.png").read_bytes().startswith(b"\x89PNG")


def test_plot_points_are_grouped_by_field_value(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", [record(4, "1", 0.4), record(4, "2", 0.5, layout="other"), record(8, "3", 0.6)])
    plot = Plot("p", "engine", "requests", ("a.b",), "title", "ratio", by="layout")
    found = groups(read_results(tmp_path), plot)
    assert {name: {place: line["a"]["b"] for place, line in lines.items()} for name, lines in found.items()} == {
        "other: ": {4: 0.5}, "small: ": {4: 0.4, 8: 0.6}
    }  # fmt: skip
    assert groups([], plot) == {}


def test_plot_names_are_unique() -> None:
    assert len({plot.name for plot in PLOTS}) == len(PLOTS)
