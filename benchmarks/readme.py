"""Measure the figures in the README on this machine and write them there.

    python -m benchmarks.readme [--package FOLDER]

The command runs benchmarks one after another; nothing else should run meanwhile. They measure the bundled model behind
its proxy (`ensemble`), a small, randomly initialised Qwen3-TTS (`ensemble --family`) and, with `--package`, Pocket TTS
in alternation with its authors' package (`authors`). Each benchmark appends its lines to its file in `--results`.
Then the command replaces the README's text between the two comments that name it. `--only-write` uses the latest result
lines instead of measuring.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, stop_on_sigterm

Record = Mapping[str, Any]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN = "<!-- python -m benchmarks.readme -->\n"
END = "<!-- end of python -m benchmarks.readme -->\n"
# concurrent requests
BUNDLED = (1, 8, 32)
FAMILY = (1, 4, 16)
POCKET = (1, 4, 16)
SMALL_FAMILY = "qwen3-tts-small"
AUTHORS = "pocket_tts"  # family measured at rest against its authors' code


def read_results(folder: Path) -> list[Record]:
    """Return all lines of all result files, oldest first."""
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return sorted((json.loads(line) for line in lines if line), key=lambda record: record["time"])


def measure(results: Path, rounds: int, package: Path | None) -> None:
    """Run the benchmarks one after another. Each appends its lines to its file in `results`."""

    def run(benchmark: str, file: str, streams: Sequence[int], *words: str) -> None:
        command = [sys.executable, "-m", f"benchmarks.{benchmark}", *words, "--out", str(results / f"{file}.jsonl")]
        command += ["--rounds", str(rounds), "--concurrency", *map(str, streams)]
        subprocess.run(command, check=True, cwd=ROOT)

    run("ensemble", "speech", BUNDLED)
    run("ensemble", "families", FAMILY, "--family", SMALL_FAMILY)
    if package is not None:
        run("authors", "authors", POCKET, "--family", "pocket_tts", "--package", str(package.resolve()))


def latest(records: Iterable[Record], field: str, places: Sequence[int], **wanted: Any) -> list[Record]:
    """Return the newest record with `wanted` for each value of `field` in `places`; an empty list if one has none.

    `records` are oldest first.
    """
    found = {record[field]: record for record in records if field in record and wanted.items() <= record.items()}
    return [found[wanted_value] for wanted_value in places] if found.keys() >= set(places) else []


def machine(record: Record) -> str:
    """Return a text that describes the machine, the date and the revision of a record."""
    cpu, has_avx512 = _processor(record)
    vectors = "AVX-512" if has_avx512 else "AVX2 only"
    day = record["time"][:10]
    return f"{record['hardware']['cores']} cores of an {cpu} with {vectors}, {day}, revision `{record['revision']}`"


def text(records: Sequence[Record]) -> str:
    """Return the README's figures as Markdown, the lines between its comments, without other processors' records.

    Raises:
        ValueError: The bundled model's figures are missing.
    """
    bundled = latest(records, "concurrency", BUNDLED, benchmark="speech")
    if not bundled:
        raise ValueError(f"results: expected lines of `ensemble` at {BUNDLED} concurrent requests")
    lines = [
        f"Measured with the bundled model on {machine(bundled[-1])},",
        "without a GPU. Server and clients shared the cores; every request passed the proxy and used guidance",
        "([all measurements](benchmarks/README.md)).",
        "",
        "| concurrent requests | first audio, p50 / p95 | real-time factor, p50 | seconds of audio per second "
        "| guided ÷ unguided throughput |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {record['concurrency']} | {record['audio_ttfp_p50']:.2f} / {record['audio_ttfp_p95']:.2f} s "
        f"| {record['audio_rtf_p50']:.2f} | {record['audio_throughput']:.1f} | {record['cfg_retention']:.2f} |"
        for record in bundled
    ]
    others = list[str]()
    here = [record for record in records if _processor(record) == _processor(bundled[-1])]
    if family := latest(here, "concurrency", FAMILY, benchmark="families", family=SMALL_FAMILY):
        others.append(f"a small Qwen3-TTS {_speeds(family)}")
    beside = [record for record in here if "package_frames_per_cpu_s" in record]  # others measured the server alone
    plain, quantized = (
        [record for record in beside if record.get("quantize") == quantization] for quantization in (None, "int8")
    )
    if pocket := latest(plain, "streams", POCKET, benchmark=AUTHORS):
        theirs = pocket[0]["package_frames_per_cpu_s"]
        speed = _speeds(pocket)
        if int8 := latest(quantized, "streams", POCKET, benchmark=AUTHORS):
            speed += f", in int8 {_speeds(int8)}"
        others.append(f"Pocket TTS {speed} (its authors' package: {theirs:.1f})")
    if others:
        lines += [
            "",
            "Frames per second of processor time at 1 / 4 / 16 streams, with random weights:",
            ";\n".join(others) + ".",
        ]
    return "\n".join(lines) + "\n"


def _processor(record: Record) -> tuple[str, bool]:
    host = record["hardware"]
    return host["cpu"], bool(host.get("avx512"))


def _speeds(records: Iterable[Record]) -> str:
    speeds = (record["frames_per_cpu_s"] for record in records)
    return " / ".join(f"{speed:.{0 if speed >= 10 else 1}f}" for speed in speeds)


def replaced(page: str, figures: str) -> str:
    """Replace the text between the page's two comments; raise ValueError if the page lacks them."""
    parts = re.split(f"({re.escape(BEGIN)}|{re.escape(END)})", page)
    if parts[1::2] != [BEGIN, END]:
        raise ValueError(f"README.md: expected {BEGIN.strip()} and {END.strip()}, once each")
    return parts[0] + BEGIN + figures + END + parts[4]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, help="folder with the package pocket-tts and its requirements")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with result files; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="number of turns for each arm; default: %(default)s")
    parser.add_argument("--only-write", action="store_true", help="do not measure; use the latest result lines")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    if not arguments.only_write:
        measure(arguments.results, arguments.rounds, arguments.package)
    README.write_text(replaced(README.read_text(), text(read_results(arguments.results))))


if __name__ == "__main__":
    stop_on_sigterm()
    main()
