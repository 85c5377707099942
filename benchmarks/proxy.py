"""What the proxy before Triton costs: the same load through it, and past it into Triton's own socket, in turns.

    python -m benchmarks.proxy --concurrency 1 8 16 --rounds 5

The server must be running on this host, started by the launcher and by this user.
"""

import argparse
import asyncio
import statistics
from pathlib import Path
from typing import Any

import psutil

from benchmarks.ensemble import through_triton
from benchmarks.results_file import append_result
from benchmarks.speech_load import Load, check, ratio, run, texts
from stretto_client import SpeechClient

PROXY = "stretto.serving.proxy"


def proxy_of(port: int) -> psutil.Process:
    """The proxy's process that listens on the gRPC port."""
    for process in psutil.process_iter(["cmdline"]):
        if PROXY in (process.info["cmdline"] or ()) and any(
            each.laddr.port == port for each in process.net_connections()
        ):
            return process
    raise SystemExit(f"no proxy listens on port {port}: start a server with stretto serve")


def cpu_s(process: psutil.Process) -> float:
    """Seconds of processor time that the process has used."""
    times = process.cpu_times()
    return times.user + times.system


async def measure(concurrency: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both ways at one concurrency; the record of their figures."""
    port, lines, proxy = arguments.port, texts(), proxy_of(arguments.port)
    (socket,) = Path("/dev/shm").glob(f"stretto_launch_*.run/grpc:{port}")
    load = Load(concurrency, arguments.requests, arguments.frames, arguments.guidance)
    throughput: dict[str, list[float]] = {"proxy": [], "socket": []}
    first_s: dict[str, list[float]] = {"proxy": [], "socket": []}
    used_s = audio_s = 0.0
    async with SpeechClient(f"localhost:{port}") as through, SpeechClient(f"unix:{socket}") as past:
        ways = {"proxy": through_triton(through), "socket": through_triton(past)}
        for speak in ways.values():
            await run(Load(min(concurrency, 4), 1, load.frames, load.guidance_scale), speak, lines)
        for _ in range(arguments.rounds):
            for way, speak in ways.items():
                before_s = cpu_s(proxy)
                traces, wall_s = await run(load, speak, lines)
                check(traces)
                throughput[way].append(sum(trace.audio_s for trace in traces) / wall_s)
                first_s[way] += [trace.arrivals[0] - trace.sent for trace in traces]
                if way == "proxy":
                    used_s += cpu_s(proxy) - before_s
                    audio_s += sum(trace.audio_s for trace in traces)
    medians = {way: statistics.median(values) for way, values in first_s.items()}
    return {
        "concurrency": concurrency,
        "proxy_throughput_ratio": ratio(throughput["proxy"], throughput["socket"]),
        "proxy_first_audio_ms": round(1000 * (medians["proxy"] - medians["socket"]), 2),
        "proxy_cpu_ms_per_audio_s": round(1000 * used_s / audio_s, 3),
        "audio_throughput": round(statistics.median(throughput["proxy"]), 3),
        "audio_ttfp_p50": round(medians["proxy"], 5),
    }


async def main(arguments: argparse.Namespace) -> None:
    """A line for every concurrency."""
    for concurrency in arguments.concurrency:
        append_result(arguments.out, "proxy", await measure(concurrency, arguments))


def parse() -> argparse.Namespace:
    """The command line."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.proxy", description=__doc__.splitlines()[0])
    flags.add_argument("--port", type=int, default=8001, help="the server's gRPC port")
    flags.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 16])
    flags.add_argument("--requests", type=int, default=3, help="of each stream and round")
    flags.add_argument("--rounds", type=int, default=5)
    flags.add_argument("--frames", type=int, default=75, help="of every utterance")
    flags.add_argument("--guidance", type=float, default=2.0)
    flags.add_argument("--out", type=Path, help="file of JSON lines to append to")
    return flags.parse_args()


if __name__ == "__main__":
    asyncio.run(main(parse()))
