"""Print the time of each hand-over of a request until the first audio, from the client to the codec and back.

    python -m benchmarks.hops --requests 20
    python -m benchmarks.hops --model-repository DIR --requests 20

The server notes the time of each hand-over (`stretto.hops`), all on one clock. Requests follow one another with a
pause, so all times between a request and its samples belong to it. Only the path to the first audio is shown.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import append_result, command_line, serving, stop_on_sigterm
from lab.texts import texts
from stretto.hops import FOLDER, Hop, read_stamps
from stretto_client import Speech, SpeechClient

PAUSE_S = 0.2  # in which the steps of the last request end
WARM_UPS = 3

Stamps = Sequence[tuple[float, Hop]]
Walk = dict[Hop, float]


@contextmanager
def tracing() -> Iterator[Path]:
    """Make servers that start in the `with` block note their hops; yield the folder of the files."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ[FOLDER]


async def ask(streams: Iterator[Speech]) -> list[tuple[float, float]]:
    """Send each stream's request after the previous one; return when each was sent and its first samples arrived."""
    spans = list[tuple[float, float]]()
    for stream in streams:
        sent_s = time.monotonic()
        heard_s: float | None = None
        async for event in stream:
            if heard_s is None and event.pcm is not None and event.pcm.size:
                heard_s = time.monotonic()
        assert heard_s is not None, "a reply has no audio"
        spans.append((sent_s, heard_s))
        await asyncio.sleep(PAUSE_S)
    return spans


def walk(stamps: Stamps, sent_s: float, heard_s: float) -> Walk:
    """Return the seconds from a request to each of its hops.

    Up to the engine, these are the first times after the request. The later hops are found backwards from the samples,
    because chunks without audio may come before, and other chunks and rows follow while the first one is decoded.
    """
    inside = [(at_s, hop) for at_s, hop in stamps if sent_s <= at_s <= heard_s]
    times = {Hop.CLIENT_SENDS: 0.0, Hop.CLIENT_HEARS: heard_s - sent_s}
    hops = list(Hop)
    middle = hops.index(Hop.ENGINE_ACCEPTS) + 1
    for hop in hops[1:middle]:
        times[hop] = next(at_s for at_s, other in inside if other is hop) - sent_s
    until_s = heard_s
    for hop in reversed(hops[middle:-1]):
        until_s = max(at_s for at_s, other in inside if other is hop and at_s <= until_s)
        times[hop] = until_s - sent_s
    return times


def rows(walks: Sequence[Walk]) -> list[dict[str, Any]]:
    """Return a row per hop in milliseconds: the median time since the request, and times since the previous hop."""
    table_rows = list[dict[str, Any]]()
    before = [0.0] * len(walks)
    for hop in Hop:
        at = [walked[hop] for walked in walks]
        took_ms = 1e3 * (np.asarray(at) - before)
        figures = {
            "at_ms": 1e3 * np.median(at),
            "least_ms": took_ms.min(),
            "p50_ms": np.median(took_ms),
            "p95_ms": np.percentile(took_ms, 95),
        }
        table_rows.append({"hop": str(hop), **{name: round(float(value), 2) for name, value in figures.items()}})
        before = at
    return table_rows


def table(hops: Sequence[dict[str, Any]]) -> str:
    lines = ["| hand-over | at | after the one before: least | p50 | p95 |", "|---|---|---|---|---|"]
    for row in hops:
        cells = (f"{row[name]:.2f}" for name in ("at_ms", "least_ms", "p50_ms", "p95_ms"))
        lines.append(f"| {row['hop']} | {' | '.join(cells)} |")
    return "\n".join(lines)


async def trace(speak: Callable[[str], Speech], folder: Path, num_requests: int) -> list[dict[str, Any]]:
    """Return the rows of `num_requests` requests to a server, after a few that are not counted."""
    spans = await ask(speak(text) for text in islice(texts(), WARM_UPS + num_requests))
    stamps = read_stamps(folder)
    return rows([walk(stamps, *span) for span in spans[WARM_UPS:]])


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    return command_line(__doc__, "hops", serves=True, requests=(20, "number of requests")).parse_args(argv)


def main(arguments: argparse.Namespace) -> None:
    stop_on_sigterm()

    async def hops_of(address: str, folder: Path) -> list[dict[str, Any]]:
        async with SpeechClient(address) as client:
            return await trace(client.speak, folder, arguments.requests)

    with tracing() as folder, serving(arguments.model_repository) as address:
        hops = asyncio.run(hops_of(address, folder))
    for row in hops:
        append_result(arguments.out, "hops", row | {"requests": arguments.requests})
    print(table(hops))


if __name__ == "__main__":
    main(parse())
