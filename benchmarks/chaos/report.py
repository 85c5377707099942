"""The report of a run, for people: markdown."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.results_file import Result


def write_report(path: Path, result: Result) -> None:
    """Write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines(result)) + "\n")


def lines(result: Result) -> Iterator[str]:
    """The lines of the report of a run."""
    record = result.figures
    calm, hardware = record["calm"], result.hardware
    yield f"# {record['streams']} streams for {calm['minutes']:g} minutes, and what was done to the server then"
    yield ""
    machine = f"{hardware['cores']} cores ({hardware['cpu']}), {hardware['memory_gib']:g} GiB"
    made = f"`scripts/soak.sh --minutes {calm['minutes']:g} --seed {record['seed']}`"
    yield f"{made}, {result.time}, revision {result.revision}, on {machine}."
    yield f"At the end the load average was {result.load_average:g}."
    yield ""
    yield from verdict(record["wrong"])
    yield ""
    yield f"## The load alone: {sum(calm['outcomes']['verdicts'].values())} answers"
    yield ""
    yield "| requests | of them |"
    yield "|---|---|"
    yield from (f"| {name} | {count} |" for name, count in calm["outcomes"]["verdicts"].items())
    yield from (f"| {said.replace('|', '/')} | {count} |" for said, count in calm["outcomes"]["errors"].items())
    yield ""
    yield f"Memory in MB; the slope is that after {calm['warm_up_minutes']:.3g} minutes."
    yield ""
    yield "| process | start | warm | end | slope, MB / min | threads | descriptors |"
    yield "|---|---|---|---|---|---|---|"
    for name, figures in calm["processes"].items():
        memory = " | ".join(f"{figures[f'rss_mb_{when}']:.0f}" for when in ("start", "warm", "end"))
        held = " | ".join("{}, {}".format(*figures[what]) for what in ("threads", "descriptors"))
        yield f"| {name} | {memory} | {figures['slope_rss_mb_per_min']:.2f} | {held} |"
    yield ""
    yield "## Faults under that load"
    yield ""
    yield "| fault | right again after, s | right | left | errors | wrong, incomplete or hung |"
    yield "|---|---|---|---|---|---|"
    yield from (row(fault) for fault in record["faults"])


def verdict(wrong: list[str]) -> Iterator[str]:
    """What is to be said first."""
    if not wrong:
        yield "Nothing is wrong: every answer was complete and equal to its seed's, or an error that says so."
        return
    yield f"**{len(wrong)} findings:**"
    yield ""
    yield from (f"- {each}" for each in wrong)


def row(fault: Mapping[str, Any]) -> str:
    """One fault."""
    if "skipped" in fault:
        return f"| {fault['fault']} | not done: {fault['skipped']} | | | | |"
    counts = dict.fromkeys(("right", "left", "error", "bad"), 0)
    for name, count in fault["outcomes"]["verdicts"].items():
        worth = name.rpartition(": ")[2]
        counts[worth if worth in counts else "bad"] += count
    right_s = "never" if fault["right_s"] is None else f"{fault['right_s']:.1f}"
    return f"| {fault['fault']} | {right_s} | " + " | ".join(map(str, counts.values())) + " |"
