"""How long a server works on for a client that has gone: from `cancel` to when the language model has let go.

    python -m benchmarks.cancelling --streams 1 8

A server is started for it. So many long utterances begin together; when one has been answered a few times it is
cancelled, while the others go on. That the language model has let go is seen in its table of utterances, which this
process looks into. One line of JSON for each number of streams: percentiles, in ms.
"""

import argparse
import asyncio
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.process_watch import served_processes
from benchmarks.results_file import append_result
from benchmarks.temporary_server import command_line, serving, stop_on_sigterm
from stretto.triton_io.flow import FlowTable
from stretto_client import Speech, SpeechClient

TEXT = "The river and the green garden and the window and the morning and the door."
RESPONSES = 3  # before it is cancelled
LOOK_S = 0.0005
WAIT_S = 60.0


def flow_table() -> FlowTable:
    """The table of the server below this process."""
    (path,) = Path("/dev/shm").glob(f"stretto_flow_{served_processes(os.getpid())['tritonserver']}_*")
    return FlowTable.open(path.name)


async def until_active(table: FlowTable, number: int) -> None:
    """Wait until no more than `number` utterances are in flight."""
    deadline = time.monotonic() + WAIT_S
    while table.num_active() > number:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{table.num_active()} utterances are in flight {WAIT_S:g} s after a client has gone")
        await asyncio.sleep(LOOK_S)


async def begun(stream: Speech) -> Speech:
    """The stream, answered so often."""
    for _ in range(RESPONSES):
        await anext(stream)
    return stream


async def cancel_one(client: SpeechClient, table: FlowTable, num_streams: int) -> float | None:
    """Seconds until one of so many streams has been let go; None where another had ended before."""
    options: dict[str, Any] = {"seed": 1, "max_audio_s": 9.6, "audio": {"min_rows": 239}}
    streams = [client.speak(TEXT, **options) for _ in range(num_streams)]
    await asyncio.gather(*map(begun, streams))
    were_active = table.num_active() == num_streams
    cancelled = time.monotonic()
    streams[0].cancel()
    await until_active(table, num_streams - 1)
    took_s = time.monotonic() - cancelled
    for stream in streams:
        await stream.aclose()
    await until_active(table, 0)
    return took_s if were_active else None


async def measure(server: str, num_streams: int, count: int) -> dict[str, Any]:
    """The record of one number of streams."""
    table, took_s = flow_table(), list[float]()
    async with SpeechClient(server) as client:
        for number in range(-1, count):  # the first warms up
            seconds = await cancel_one(client, table, num_streams)
            if seconds is not None and number >= 0:
                took_s.append(seconds)
    table.close()
    figures = {f"cancel_ms_p{which}": round(1000 * float(np.percentile(took_s, which)), 2) for which in (50, 95, 100)}
    return {"streams": num_streams, "cancelled": len(took_s), **figures}


def main(arguments: argparse.Namespace) -> None:
    """A line for every number of streams."""
    with serving(arguments.model_repository) as server:
        for num_streams in arguments.streams:
            figures = asyncio.run(measure(server, num_streams, arguments.count))
            append_result(arguments.out, "cancelling", figures)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, "cancelling")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--count", type=int, default=40, help="streams that are cancelled, of each number")
    return parser.parse_args()


if __name__ == "__main__":
    stop_on_sigterm()
    main(parse())
