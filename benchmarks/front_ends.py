"""Measure the cost of the proxy and the gateway, a crowd of connections, and client disconnects.

    python -m benchmarks.front_ends --concurrency 1 16 --rounds 6 --connections 256 --disconnects 40

The same load runs alternately through the proxy and directly to Triton's socket, then alternately over HTTP through the
gateway and over gRPC without it. After that, one of several long utterances is cancelled after a few responses, and
gateway clients disconnect during an answer, one at a time. The benchmark measures how long the language model continues
after each. For this, it opens the language model's table of utterances. Finally, `--connections` simultaneous clients
connect to the gateway and retry when it asks them to. The benchmark starts its own server and gateway. Clients, gateway
and server share this host, which should be otherwise idle. The benchmark writes one line of JSON for each measurement.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import aiohttp
import numpy as np
import psutil

from benchmarks.harness import (
    Launch,
    append_result,
    command_line,
    free_ports,
    served_processes,
    stop_on_sigterm,
)
from benchmarks.loads import Load, Speak, Trace, check, compare, percentiles, through_triton
from lab.texts import texts
from stretto.triton_io.flow import FlowTable
from stretto_client import Speech, SpeechClient
from stretto_gateway.encoding import DEFAULT_RATE, wav_header

HEADER = len(wav_header(DEFAULT_RATE))
MIB = 1 << 20
START_S = 60.0
GUIDANCE = 2.0


@contextmanager
def gateway(server: str, source: Path | None = None, keys: Sequence[str] = ()) -> Iterator[tuple[str, psutil.Process]]:
    """Start a gateway for `server` and yield its address and process.

    Args:
        server: Address of the server.
        source: Checkout with the gateway's code; None for this one.
        keys: API keys; if empty, clients need none.

    Raises:
        RuntimeError: The gateway does not start.
    """
    (port,) = free_ports(1)
    paths = [] if source is None else [str(source / "gateway"), str(source / "client"), str(source / "contract")]
    code = f"import sys; sys.path[:0] = {paths}; from stretto_gateway.command import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--server", server, "--port", str(port)]
    environment = dict(os.environ) | ({"STRETTO_API_KEYS": ",".join(keys)} if keys else {})
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        if "listening" not in line:
            raise RuntimeError(f"the gateway did not start: {line}")
        Thread(target=process.stderr.read, daemon=True).start()  # drains the log, so that the pipe cannot fill up
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=START_S)


def through_http(session: aiohttp.ClientSession, response_format: str) -> Speak:
    """Return a function that requests speech over OpenAI's API; compressed audio is not decoded."""

    async def speak(text: str, options: dict[str, Any]) -> Trace:
        body = {"model": "tts-1", "input": text, "response_format": response_format} | options
        trace = Trace(sent=time.perf_counter(), sound=0.0)
        async with session.post("/v1/audio/speech", json=body) as answer:
            if answer.status != 200:
                trace.error = await answer.text()
            left = HEADER if response_format == "wav" else 0
            async for received in answer.content.iter_any():
                samples = received[left:]
                left = max(0, left - len(received))
                pcm = np.frombuffer(samples[: len(samples) // 2 * 2], "<i2")
                if len(pcm):
                    trace.add(time.perf_counter(), pcm, DEFAULT_RATE)
        trace.finished = time.perf_counter()
        return trace

    return speak


async def speak_with_retries(speak: Speak, text: str, options: dict[str, Any]) -> tuple[Trace, int]:
    """Send a request until it is admitted; return its trace from the first attempt, and the number of retries."""
    begun_s = time.perf_counter()
    num_retries = 0
    while (trace := await speak(text, options)).error is not None and '"rate_limit_error"' in trace.error:
        num_retries += 1
        await asyncio.sleep(1)  # the value of Retry-After
    trace.sent = begun_s
    return trace, num_retries


async def crowd(server: str, num_connections: int, frames: int) -> dict[str, Any]:
    """Open many connections at once; return the record of retries, first audio and gateway memory."""
    lines = texts()
    options = {"audio": {"min_rows": frames, "max_rows": frames}}
    with gateway(server) as (url, process):
        connector = aiohttp.TCPConnector(limit=num_connections, force_close=True)
        async with aiohttp.ClientSession(url, connector=connector) as session:
            speak = through_http(session, "wav")
            rss_mib = list[float]()
            for _ in range(2):  # the first crowd includes one-time allocations
                everybody = [speak_with_retries(speak, next(lines), options) for _ in range(num_connections)]
                traces, num_retries = zip(*await asyncio.gather(*everybody), strict=True)
                check(list(traces))
                rss_mib.append(process.memory_info().rss / MIB)
    first_s = [trace.first_s for trace in traces]
    return {
        "connections": num_connections,
        "told_full": sum(num > 0 for num in num_retries),
        **percentiles("crowd_first_audio", first_s),
        "gateway_rss_mib": [round(size, 1) for size in rss_mib],
    }


async def leave_one(session: aiohttp.ClientSession, table: FlowTable) -> float:
    """Close a connection during an answer; return the seconds until the language model drops the utterance."""
    body = {"model": "tts-1", "input": TEXT, "response_format": "wav", "max_audio_s": 9.6, "audio": {"min_rows": 239}}
    answer = await session.post("/v1/audio/speech", json=body)
    for _ in range(2):
        await answer.content.readany()
    if table.num_active() != 1:
        raise RuntimeError(f"{table.num_active()} utterances are in flight, expected 1")
    left_s = time.monotonic()
    answer.close()
    await until_active(table, 0)
    return time.monotonic() - left_s


async def leave(server: str, count: int) -> dict[str, Any]:
    """Disconnect `count` clients one at a time and return the record."""
    table = flow_table()
    with gateway(server) as (url, _):
        async with aiohttp.ClientSession(url) as session:
            await leave_one(session, table)  # warms up
            took_s = [await leave_one(session, table) for _ in range(count)]
    table.close()
    return {"left": count, **percentiles_ms("leave", took_s)}


async def measure(server: str, concurrency: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a load through the gateway and without it at one concurrency; return the record."""
    load = load_of(concurrency, arguments)
    with gateway(server) as (url, process):
        async with aiohttp.ClientSession(url) as session, SpeechClient(server) as client:
            ways = through_http(session, "wav"), through_triton(client, encoding="pcm_s16le", sample_rate=DEFAULT_RATE)
            return await compare("gateway", load, arguments.rounds, process, *ways)


TEXT = "The river and the green garden and the window and the morning and the door."
RESPONSES = 3  # before the cancellation
POLL_S = 0.0005
WAIT_S = 60.0


def flow_table() -> FlowTable:
    """Open the utterance table of the server that this process has started."""
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
    """Read RESPONSES responses and return the stream."""
    for _ in range(RESPONSES):
        await anext(stream)
    return stream


async def cancel_one(client: SpeechClient, table: FlowTable, num_streams: int) -> float | None:
    """Cancel one of `num_streams` streams and return the seconds until the language model drops it.

    Returns:
        Seconds, or None if another stream had ended first.
    """
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


async def measure_cancelling(server: str, num_streams: int, count: int) -> dict[str, Any]:
    """Cancel one of `num_streams` streams, `count` times, and return the record."""
    table = flow_table()
    took_s = list[float]()
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


async def measure_proxy(launch: Launch, concurrency: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a load through the proxy and directly to Triton's socket at one concurrency; return the record."""
    (socket,) = Path("/dev/shm").glob(f"stretto_launch_*.run/grpc:{launch.grpc}")
    proxy = psutil.Process(served_processes()["proxy"])
    load = load_of(concurrency, arguments)
    async with SpeechClient(launch.address) as through, SpeechClient(f"unix:{socket}") as past:
        return await compare("proxy", load, arguments.rounds, proxy, through_triton(through), through_triton(past))


def load_of(concurrency: int, arguments: argparse.Namespace) -> Load:
    """Return the load that one turn sends."""
    return Load(concurrency, arguments.requests, arguments.frames, GUIDANCE)


def main(arguments: argparse.Namespace) -> None:
    """Start a server, measure everything and write the lines."""
    with tempfile.TemporaryDirectory() as folder:
        launch = Launch(arguments.model_repository, Path(folder))
        launch.start()
        try:
            server = launch.address
            for number in arguments.concurrency:
                append_result(arguments.out, "proxy", asyncio.run(measure_proxy(launch, number, arguments)))
                append_result(arguments.out, "gateway", asyncio.run(measure(server, number, arguments)))
            for number in arguments.streams if arguments.disconnects else ():
                figures = asyncio.run(measure_cancelling(server, number, arguments.disconnects))
                append_result(arguments.out, "cancelling", figures)
            if arguments.disconnects:
                append_result(arguments.out, "gateway", asyncio.run(leave(server, arguments.disconnects)))
            if arguments.connections:
                figures = asyncio.run(crowd(server, arguments.connections, arguments.frames))
                append_result(arguments.out, "gateway", figures)
        finally:
            launch.stop()


if __name__ == "__main__":
    stop_on_sigterm()
    main(
        command_line(
            __doc__,
            "front_ends",
            serves=True,
            concurrency=([1, 16], "numbers of simultaneous streams"),
            requests=(3, "utterances per stream in each round"),
            rounds=(6, "number of turns for each path"),
            frames=(75, "frames per utterance"),
            disconnects=(40, "number of clients that disconnect from each front end; 0: skip it"),
            streams=([1, 8], "numbers of simultaneous streams, one of which is cancelled"),
            connections=(256, "number of connections in the crowd; 0: skip it"),
        ).parse_args()
    )
