"""What the gateway costs: the same load over HTTP through it, and over gRPC past it, in turns.

    python -m benchmarks.gateway --concurrency 1 16 --rounds 6 --connections 256 --disconnects 40

Then a crowd: so many connections at once, who come again when they are told to. And callers who leave amid an answer,
one at a time: how long the language model works on for each. It starts a server of its own, and a gateway before it;
clients, gateway and server share this host, which has to be at rest.
"""

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import aiohttp
import numpy as np
import psutil

from benchmarks.cancelling import TEXT, flow_table, until_active
from benchmarks.results_file import append_result
from benchmarks.speech_load import Load, Speak, check, follow, texts
from benchmarks.speech_metrics import Trace, percentiles
from benchmarks.temporary_server import command_line, free_ports, serving, stop_on_sigterm
from benchmarks.two_ways import compare
from stretto.triton_io.flow import FlowTable
from stretto_client import SpeechClient
from stretto_gateway.encoding import DEFAULT_RATE, wav_header

HEADER = len(wav_header(DEFAULT_RATE))
MIB = 1 << 20
START_S = 60.0


@contextmanager
def gateway(server: str, source: Path | None = None) -> Iterator[tuple[str, psutil.Process]]:
    """Yield the address and the process of a gateway before `server`, of the source in folder `source` if not None.

    Raises:
        RuntimeError: It does not start.
    """
    (port,) = free_ports(1)
    paths = [] if source is None else [str(source / "gateway"), str(source / "client")]
    code = f"import sys; sys.path[:0] = {paths}; from stretto_gateway.command import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--server", server, "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        if "listening" not in line:
            raise RuntimeError(f"the gateway did not start: {line}")
        Thread(target=process.stderr.read, daemon=True).start()  # its log, for which a pipe has little room
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=START_S)


def through_http(session: aiohttp.ClientSession, response_format: str) -> Speak:
    """The way of a program that speaks OpenAI's API; sound of formats that need a decoder counts as it comes."""

    async def speak(text: str, options: dict[str, Any]) -> Trace:
        body = {"model": "tts-1", "input": text, "response_format": response_format} | options
        trace = Trace(sent=time.perf_counter(), sound=0.0)
        async with session.post("/v1/audio/speech", json=body) as answer:
            if answer.status != 200:
                trace.error = await answer.text()
            left = HEADER if response_format == "wav" else 0
            async for part in answer.content.iter_any():
                samples, left = part[left:], max(0, left - len(part))
                pcm = np.frombuffer(samples[: len(samples) // 2 * 2], "<i2")
                if len(pcm):
                    trace.add(time.perf_counter(), pcm, DEFAULT_RATE)
        trace.finished = time.perf_counter()
        return trace

    return speak


def through_grpc(client: SpeechClient) -> Speak:
    """The same samples past the gateway."""

    async def speak(text: str, options: dict[str, Any]) -> Trace:
        form: dict[str, Any] = {"encoding": "pcm_s16le", "sample_rate": DEFAULT_RATE}
        return await follow(Trace(sent=time.perf_counter()), client.speak(text, **form, **options))

    return speak


async def come(speak: Speak, text: str, options: dict[str, Any]) -> tuple[Trace, int]:
    """One of a crowd, and how often it was told to come again."""
    begun_s, num_told = time.perf_counter(), 0
    while (trace := await speak(text, options)).error is not None and '"rate_limit_error"' in trace.error:
        num_told += 1
        await asyncio.sleep(1)  # as Retry-After says
    trace.sent = begun_s
    return trace, num_told


async def crowd(server: str, num_connections: int, frames: int) -> dict[str, Any]:
    """The record of so many connections at once: who was answered, when, and what the gateway took for them."""
    lines, options = texts(), {"audio": {"min_rows": frames, "max_rows": frames}}
    with gateway(server) as (url, process):
        connector = aiohttp.TCPConnector(limit=num_connections, force_close=True)
        async with aiohttp.ClientSession(url, connector=connector) as session:
            speak = through_http(session, "wav")
            rss_mib = list[float]()
            for _ in range(2):  # the first takes what is taken once
                everybody = [come(speak, next(lines), options) for _ in range(num_connections)]
                traces, num_told = zip(*await asyncio.gather(*everybody), strict=True)
                check(list(traces))
                rss_mib.append(process.memory_info().rss / MIB)
    first_s = [trace.arrivals[0] - trace.sent for trace in traces]
    return {
        "connections": num_connections,
        "told_full": sum(num > 0 for num in num_told),
        **percentiles("crowd_first_audio", first_s),
        "gateway_rss_mib": [round(each, 1) for each in rss_mib],
    }


async def leave_one(session: aiohttp.ClientSession, table: FlowTable) -> float:
    """Seconds from when a caller has closed a connection to when the language model has let go of the answer."""
    body = {"model": "tts-1", "input": TEXT, "response_format": "wav", "max_audio_s": 9.6, "audio": {"min_rows": 239}}
    answer = await session.post("/v1/audio/speech", json=body)
    for _ in range(2):
        await answer.content.readany()
    if table.num_active() != 1:
        raise RuntimeError(f"{table.num_active()} utterances are in flight where one was asked for")
    left_s = time.monotonic()
    answer.close()
    await until_active(table, 0)
    return time.monotonic() - left_s


async def leave(server: str, count: int) -> dict[str, Any]:
    """The record of `count` of them."""
    table = flow_table()
    with gateway(server) as (url, _):
        async with aiohttp.ClientSession(url) as session:
            await leave_one(session, table)  # which warms up
            took_s = [await leave_one(session, table) for _ in range(count)]
    table.close()
    figures = {f"leave_ms_p{which}": round(1000 * float(np.percentile(took_s, which)), 2) for which in (50, 95, 100)}
    return {"left": count, **figures}


async def measure(server: str, concurrency: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both ways at one concurrency; the record of their figures."""
    load = Load(concurrency, arguments.requests, arguments.frames, 2.0)
    with gateway(server) as (url, process):
        async with aiohttp.ClientSession(url) as session, SpeechClient(server) as client:
            ways = through_http(session, "wav"), through_grpc(client)
            return await compare("gateway", load, arguments.rounds, process, *ways)


def main(words: list[str] | None = None) -> None:
    """A line for every concurrency."""
    flags = command_line(__doc__, "gateway")
    flags.add_argument("--concurrency", type=int, nargs="+", default=[1, 16])
    flags.add_argument("--requests", type=int, default=3, help="of each stream and round")
    flags.add_argument("--rounds", type=int, default=6)
    flags.add_argument("--frames", type=int, default=75, help="of every utterance")
    flags.add_argument("--connections", type=int, default=256, help="of the crowd; 0: none")
    flags.add_argument("--disconnects", type=int, default=40, help="callers who leave; 0: none")
    arguments = flags.parse_args(words)
    stop_on_sigterm()
    with serving(arguments.model_repository) as server:
        for concurrency in arguments.concurrency:
            append_result(arguments.out, "gateway", asyncio.run(measure(server, concurrency, arguments)))
        if arguments.disconnects:
            append_result(arguments.out, "gateway", asyncio.run(leave(server, arguments.disconnects)))
        if arguments.connections:
            append_result(arguments.out, "gateway", asyncio.run(crowd(server, arguments.connections, arguments.frames)))


if __name__ == "__main__":
    main()
