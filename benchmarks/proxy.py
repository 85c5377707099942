"""What the proxy before Triton costs: the same load through it, and past it into Triton's own socket, in turns.

    python -m benchmarks.proxy --concurrency 1 8 16 --rounds 5

The server must be running on this host, started by the launcher and by this user.
"""

import argparse
import asyncio
from pathlib import Path
from typing import Any

import psutil

from benchmarks.ensemble import through_triton
from benchmarks.results_file import append_result, command_line
from benchmarks.speech_load import Load
from benchmarks.two_ways import compare
from stretto_client import SpeechClient

PROXY = "stretto.proxy"


def proxy_of(port: int) -> psutil.Process:
    """The proxy's process that listens on the gRPC port."""
    for process in psutil.process_iter(["cmdline"]):
        if PROXY in (process.info["cmdline"] or ()) and any(
            each.laddr.port == port for each in process.net_connections()
        ):
            return process
    raise SystemExit(f"no proxy listens on port {port}: start a server with stretto serve")


async def measure(concurrency: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both ways at one concurrency; the record of their figures."""
    port, proxy = arguments.port, proxy_of(arguments.port)
    (socket,) = Path("/dev/shm").glob(f"stretto_launch_*.run/grpc:{port}")
    load = Load(concurrency, arguments.requests, arguments.frames, arguments.guidance)
    async with SpeechClient(f"localhost:{port}") as through, SpeechClient(f"unix:{socket}") as past:
        ways = through_triton(through), through_triton(past)
        return await compare("proxy", load, arguments.rounds, proxy, *ways)


async def main(arguments: argparse.Namespace) -> None:
    """A line for every concurrency."""
    for concurrency in arguments.concurrency:
        append_result(arguments.out, "proxy", await measure(concurrency, arguments))


def parse() -> argparse.Namespace:
    """The command line."""
    flags = command_line(__doc__, "proxy")
    flags.add_argument("--port", type=int, default=8001, help="the server's gRPC port")
    flags.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 16])
    flags.add_argument("--requests", type=int, default=3, help="of each stream and round")
    flags.add_argument("--rounds", type=int, default=5)
    flags.add_argument("--frames", type=int, default=75, help="of every utterance")
    flags.add_argument("--guidance", type=float, default=2.0)
    return flags.parse_args()


if __name__ == "__main__":
    asyncio.run(main(parse()))
