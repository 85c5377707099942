"""Cost of the proxy in front of Triton: the same load alternately through the proxy and directly to Triton's socket.

    python -m benchmarks.proxy --concurrency 1 8 16 --rounds 5

The server must be running on this host, started by the launcher and by this user.
"""

import argparse
import asyncio
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import append_result, command_line
from benchmarks.loads import Load, compare, through_triton
from stretto_client import SpeechClient

PROXY = "stretto.proxy"


def proxy_of(port: int) -> psutil.Process:
    """Return the proxy's process that listens on the gRPC port."""
    for process in psutil.process_iter(["cmdline"]):
        if PROXY in (process.info["cmdline"] or ()) and any(
            each.laddr.port == port for each in process.net_connections()
        ):
            return process
    raise SystemExit(f"no proxy listens on port {port}: start a server with stretto serve")


async def measure(concurrency: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run both ways at one concurrency and return the record."""
    port, proxy = arguments.port, proxy_of(arguments.port)
    (socket,) = Path("/dev/shm").glob(f"stretto_launch_*.run/grpc:{port}")
    load = Load(concurrency, arguments.requests, arguments.frames, arguments.guidance)
    async with SpeechClient(f"localhost:{port}") as through, SpeechClient(f"unix:{socket}") as past:
        return await compare("proxy", load, arguments.rounds, proxy, through_triton(through), through_triton(past))


if __name__ == "__main__":
    given = command_line(
        __doc__,
        "proxy",
        port=(8001, "the server's gRPC port"),
        concurrency=([1, 8, 16], "streams at once"),
        requests=(3, "utterances of each stream in a round"),
        rounds=(5, "turns of each way"),
        frames=(75, "frames of each utterance"),
        guidance=(2.0, "guidance scale"),
    ).parse_args()
    for number in given.concurrency:
        append_result(given.out, "proxy", asyncio.run(measure(number, given)))
