"""What the gateway costs: the same load over HTTP through it, and over gRPC past it, in turns.

    python -m benchmarks.gateway --concurrency 1 16 --rounds 3

It starts a server of its own, and a gateway before it; clients, gateway and server share this host.
"""

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import numpy as np
import psutil

from benchmarks.results_file import append_result
from benchmarks.speech_load import Load, Speak, follow
from benchmarks.speech_metrics import Trace
from benchmarks.temporary_server import command_line, free_ports, serving, stop_on_sigterm
from benchmarks.two_ways import compare
from stretto_client import SpeechClient
from stretto_gateway.encoding import DEFAULT_RATE, wav_header

HEADER = len(wav_header(DEFAULT_RATE))
START_S = 60.0


@contextmanager
def gateway(server: str) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a gateway before `server`, and its process; RuntimeError where it does not start."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "stretto_gateway", "--server", server, "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        if "listening" not in said:
            raise RuntimeError(f"the gateway did not start: {said}")
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.communicate(timeout=START_S)


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
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--frames", type=int, default=75, help="of every utterance")
    arguments = flags.parse_args(words)
    stop_on_sigterm()
    with serving(arguments.model_repository) as server:
        for concurrency in arguments.concurrency:
            append_result(arguments.out, "gateway", asyncio.run(measure(server, concurrency, arguments)))


if __name__ == "__main__":
    main()
