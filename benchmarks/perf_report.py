"""Compute the percentiles of streams from perf_analyzer's profile exports.

    python -m benchmarks.perf_report export.json …
    python -m benchmarks.perf_report --count export.json …      # only the number of complete requests

The summary of perf_analyzer has only one latency per request. For a stream, the first response, the first response with
audio and the gaps between responses matter. The report prints a table; its last line is a JSON object. Exports with the
same load are combined.

An export may be truncated. For an empty output, perf_analyzer writes a value from uninitialised memory. If that is not
a finite number (about one empty output in some hundreds), its writer stops. The requests before that point still count.
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
MIN_VALUES_FOR_P99 = 100  # with fewer values, a p99 is not meaningful
INTERVALS = "intervals"
MEASURES = ("first_response", "first_audio", "inter_response", "total")

Load = tuple[str, Any]  # kind of load in perf_analyzer, such as "concurrency", and its value


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request: for each response, the seconds since the request was sent and the seconds of audio."""

    arrivals_s: tuple[float, ...]
    audio_s: tuple[float, ...]

    @property
    def first_audio_s(self) -> float | None:
        """Seconds to the first response with audio, or None."""
        return next((arrival for arrival, audio in zip(self.arrivals_s, self.audio_s, strict=True) if audio), None)


def read_exchange(request: dict[str, Any]) -> Exchange:
    """Parse a request of an export. A response without an event has only the final flag and does not count."""
    sent = request["timestamp"]
    pairs = zip(request["response_timestamps"], request["response_outputs"], strict=True)
    events = [((arrived - sent) / 1e9, json.loads(output["event"])) for arrived, output in pairs if output.get("event")]
    return Exchange(tuple(arrival for arrival, _ in events), tuple(event["duration_s"] for _, event in events))


def summarise(load: Load, exchanges: list[Exchange]) -> dict[str, Any]:
    """Return the load, counts, and percentiles in seconds of every measure that has values."""
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
    """Return p50 and p95 of `values`, and p99 if there are enough."""
    shown = [p for p in PERCENTILES if p < 99 or len(values) >= MIN_VALUES_FOR_P99]
    return {f"p{p}": round(float(np.percentile(values, p)), 6) for p in shown}


def read_export(path: Path) -> dict[Load, list[Exchange]]:
    """Read the complete requests of an export, by load; raise ValueError if the file is not an export."""
    try:
        return {
            read_load(path, experiment["experiment"]): [read_exchange(request) for request in experiment["requests"]]
            for experiment in parse(path.read_text())["experiments"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a profile export of perf_analyzer: {error!r}") from error


def read_load(path: Path, experiment: dict[str, Any]) -> Load:
    """Return an export's load, from its contents and file name."""
    if path.name.startswith(f"{INTERVALS}-"):
        return INTERVALS, path.name.removeprefix(f"{INTERVALS}-").partition(".")[0]
    return experiment["mode"], experiment["value"]


def parse(export: str) -> Any:
    """Parse an export; drop the last request if it is truncated."""
    try:
        return json.loads(export)
    except json.JSONDecodeError:
        return json.loads(export.rpartition(',{"timestamp":')[0] + "]}]}")


def table(summary: dict[str, Any]) -> str:
    load = next(iter(summary))
    head = (
        f"{load} {summary[load]}: {summary['answered']} of {summary['requests']} requests answered, "
        f"{summary['responses']} responses, {summary['audio_s']:.1f} s of audio"
    )
    lines = [head, f"{'':18}" + "".join(f"{f'p{p}':>10}" for p in PERCENTILES) + "   ms"]
    for measure in MEASURES:
        if f"{measure}_s" in summary:
            shares = summary[f"{measure}_s"]
            cells = "".join(
                f"{1000 * shares[f'p{p}']:10.1f}" if f"p{p}" in shares else f"{'-':>10}" for p in PERCENTILES
            )
            lines.append(f"  {measure.replace('_', ' '):16}{cells}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Print the report; return 1 if a file is not an export, or if a request got no answer."""
    parser = argparse.ArgumentParser(
        description="Compute percentiles of the streams in perf_analyzer's profile exports."
    )
    parser.add_argument("exports", nargs="+", type=Path)
    parser.add_argument("--count", action="store_true", help="print only the number of complete requests")
    arguments = parser.parse_args(argv)
    exchanges_by_load: dict[Load, list[Exchange]] = defaultdict(list)
    try:
        for path in arguments.exports:
            for load, exchanges in read_export(path).items():
                exchanges_by_load[load] += exchanges
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.count:
        print(sum(map(len, exchanges_by_load.values())))
        return 0
    summaries = [summarise(load, exchanges) for load, exchanges in exchanges_by_load.items()]
    for summary in summaries:
        print(table(summary))
    print(json.dumps({"experiments": summaries}))
    return 0 if all(summary["answered"] == summary["requests"] > 0 for summary in summaries) else 1


if __name__ == "__main__":
    sys.exit(main())
