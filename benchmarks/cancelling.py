"""Time until the server stops working for a disconnected client: from `cancel` until the language model is done.

    python -m benchmarks.cancelling --streams 1 8

The benchmark starts its own server. Several long utterances begin together. One of them is cancelled after a few
responses, while the others continue. The end of its generation is read from the language model's table of utterances,
which this process opens. Prints one line of JSON for each number of streams: percentiles in ms.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import append_result, command_line, served_processes, serving, stop_on_sigterm
from stretto.triton_io.flow import FlowTable
from stretto_client import Speech, SpeechClient

TEXT = "The river and the green garden and the window and the morning and the door."
RESPONSES = 3  # before the cancellation
POLL_S = 0.0005
WAIT_S = 60.0


def flow_table() -> FlowTable:
    """Open the table of the server below this process."""
    (path,) = Path("/dev/shm").glob(f"stretto_flow_{served_processes()['tritonserver']}_*")
    return FlowTable.open(path.name)


async def until_active(table: FlowTable, number: int) -> None:
    """Wait until at most `number` utterances are in flight."""
    deadline = time.monotonic() + WAIT_S
    while table.num_active() > number:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{table.num_active()} utterances are in flight {WAIT_S:g} s after a disconnect")
        await asyncio.sleep(POLL_S)


async def begun(stream: Speech) -> Speech:
    """Return the stream after RESPONSES responses."""
    for _ in range(RESPONSES):
        await anext(stream)
    return stream


async def cancel_one(client: SpeechClient, table: FlowTable, num_streams: int) -> float | None:
    """Return the seconds until one of `num_streams` streams was dropped; None if another one had ended before."""
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
    """Return the record of one number of streams."""
    table, took_s = flow_table(), list[float]()
    async with SpeechClient(server) as client:
        for number in range(-1, count):  # the first round warms up
            seconds = await cancel_one(client, table, num_streams)
            if seconds is not None and number >= 0:
                took_s.append(seconds)
    table.close()
    return {"streams": num_streams, "cancelled": len(took_s), **percentiles_ms("cancel", took_s)}


def percentiles_ms(name: str, took_s: list[float]) -> dict[str, float]:
    """Return the median, 95th percentile and maximum in milliseconds."""
    return {f"{name}_ms_p{which}": round(1000 * float(np.percentile(took_s, which)), 2) for which in (50, 95, 100)}


if __name__ == "__main__":
    given = command_line(
        __doc__,
        "cancelling",
        serves=True,
        streams=([1, 8], "streams at once"),
        count=(40, "cancellations for each number of streams"),
    ).parse_args()
    stop_on_sigterm()
    with serving(given.model_repository) as server:
        for number in given.streams:
            append_result(given.out, "cancelling", asyncio.run(measure(server, number, given.count)))
