"""Reads profile exports of perf_analyzer and prints what its own summary lacks for a streaming model.

    python -m benchmarks.perf_report export.json …
    python -m benchmarks.perf_report --count export.json …      # only how many whole requests they hold

perf_analyzer prints one latency per request; of a stream, the first response, the first one with audio and the gaps
between responses matter. A table goes to standard output, and one JSON object as its last line. Exports of the same
load are one line.

An export may break off: of an empty output perf_analyzer tells a value all the same, out of memory that nobody set,
and its writer ends where that is no finite number (one empty output in some hundreds). What stands before counts.
"""

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PERCENTILES = (50, 95, 99)
MIN_VALUES_FOR_P99 = 100  # fewer say nothing about the hundredth
INTERVALS = "intervals"
MEASURES = ("first_response", "first_audio", "inter_response", "total")

Load = tuple[str, Any]  # what perf_analyzer was told to keep up, "concurrency" say, and its value


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request: seconds from sending it to each response, and the seconds of audio in each."""

    arrivals_s: tuple[float, ...]
    audio_s: tuple[float, ...]

    @property
    def first_audio_s(self) -> float | None:
        """Seconds to the first response with audio, or None."""
        return next((arrival for arrival, audio in zip(self.arrivals_s, self.audio_s, strict=True) if audio), None)


def read_exchange(request: dict[str, Any]) -> Exchange:
    """A request of an export. A response without an event carries the final flag alone and does not count."""
    sent = request["timestamp"]
    pairs = zip(request["response_timestamps"], request["response_outputs"], strict=True)
    events = [((arrived - sent) / 1e9, json.loads(output["event"])) for arrived, output in pairs if output.get("event")]
    return Exchange(tuple(arrival for arrival, _ in events), tuple(event["duration_s"] for _, event in events))


def summarise(load: Load, exchanges: list[Exchange]) -> dict[str, Any]:
    """The load, counts, and the percentiles in seconds of every measure that has values; p99 from 100 values on."""
    answered = [exchange for exchange in exchanges if exchange.arrivals_s]
    values = {
        "first_response": [exchange.arrivals_s[0] for exchange in answered],
        "first_audio": [exchange.first_audio_s for exchange in answered if exchange.first_audio_s is not None],
        "inter_response": [gap for exchange in answered for gap in np.diff(exchange.arrivals_s)],
        "total": [exchange.arrivals_s[-1] for exchange in answered],
    }
    counts = {
        load[0]: load[1],
        "requests": len(exchanges),
        "answered": len(answered),
        "responses": sum(len(exchange.arrivals_s) for exchange in answered),
        "audio_s": round(sum(sum(exchange.audio_s) for exchange in answered), 3),
    }
    return counts | {f"{measure}_s": percentiles(values[measure]) for measure in MEASURES if values[measure]}


def percentiles(values: list[float]) -> dict[str, float]:
    """p50 and p95 of `values`, and p99 where there are enough of them."""
    shown = [p for p in PERCENTILES if p < 99 or len(values) >= MIN_VALUES_FOR_P99]
    return {f"p{p}": round(float(np.percentile(values, p)), 6) for p in shown}


def read_export(path: Path) -> dict[Load, list[Exchange]]:
    """The requests of an export by their load, up to where it breaks off; ValueError when the file is none."""
    try:
        return {
            read_load(path, experiment["experiment"]): [read_exchange(request) for request in experiment["requests"]]
            for experiment in parse(path.read_text())["experiments"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a profile export of perf_analyzer: {error!r}") from error


def read_load(path: Path, experiment: dict[str, Any]) -> Load:
    """What perf_analyzer was told to keep up, by its export and by the name of that."""
    if path.name.startswith(f"{INTERVALS}-"):
        return INTERVALS, path.name.removeprefix(f"{INTERVALS}-").partition(".")[0]
    return experiment["mode"], experiment["value"]


def parse(export: str) -> Any:
    """The JSON of an export; of one that breaks off, without its last request (no string holds a bare quote)."""
    try:
        return json.loads(export)
    except json.JSONDecodeError:
        return json.loads(export.rpartition(',{"timestamp":')[0] + "]}]}")


def table(summary: dict[str, Any]) -> str:
    """A summary for people: milliseconds."""
    load = next(iter(summary))
    head = (
        f"{load} {summary[load]}: {summary['answered']} of {summary['requests']} requests answered, "
        f"{summary['responses']} responses, {summary['audio_s']:.1f} s of audio"
    )
    lines = [head, f"{'':18}" + "".join(f"{f'p{p}':>10}" for p in PERCENTILES) + "   ms"]
    for measure in MEASURES:
        if f"{measure}_s" in summary:
            found = summary[f"{measure}_s"]
            cells = "".join(f"{1000 * found[f'p{p}']:10.1f}" if f"p{p}" in found else f"{'-':>10}" for p in PERCENTILES)
            lines.append(f"  {measure.replace('_', ' '):16}{cells}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Print the report; status 1 when a file is no export or a request went unanswered."""
    parser = argparse.ArgumentParser(description="Percentiles of the streams in perf_analyzer's profile exports.")
    parser.add_argument("exports", nargs="+", type=Path)
    parser.add_argument("--count", action="store_true", help="print how many whole requests there are, and no more")
    arguments = parser.parse_args(argv)
    found: dict[Load, list[Exchange]] = defaultdict(list)
    try:
        for path in arguments.exports:
            for load, exchanges in read_export(path).items():
                found[load] += exchanges
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.count:
        print(sum(map(len, found.values())))
        return 0
    summaries = [summarise(load, exchanges) for load, exchanges in found.items()]
    for summary in summaries:
        print(table(summary))
    print(json.dumps({"experiments": summaries}))
    return 0 if all(summary["answered"] == summary["requests"] > 0 for summary in summaries) else 1


if __name__ == "__main__":
    sys.exit(main())
