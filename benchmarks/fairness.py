"""Measure how a client's flood of long texts affects the short requests of another client.

    python -m benchmarks.fairness --flooders 45 200        # starts a server and gateways; results/fairness.jsonl

First the short requests of one client run alone, then the flood of another client, then both. The flood has a
connection for each of `--flooders` texts of 4 KB; when a text has ended, the next one is sent, and a refused one is
repeated after a second. The short requests follow one another. Three ways are measured: `hosts` (through a gateway
without keys; the flood comes from 127.0.0.2), `keys` (through a gateway, with two keys) and `grpc` (without a gateway;
the flood comes from ::1). Clients, gateway and server share this host; the flood has a process of its own. The
benchmark writes one line of JSON for each way and number.
"""

import argparse
import asyncio
import ctypes
import multiprocessing
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.front_ends import gateway
from benchmarks.harness import Launch, append_result, command_line, stop_on_sigterm
from benchmarks.loads import percentiles, texts
from stretto_client import ServerFull, SpeechClient, Timeouts
from stretto_gateway.encoding import DEFAULT_RATE

WAYS = ("hosts", "keys", "grpc")
KEYS = "a-key-for-the-benchmark", "another-key-for-the-benchmark"  # of the short requests, and of the flood
SHORT = "Hi."
LONG_CHARS = 4096
# after a refusal, and between short requests
RETRY_S = 1.0
PAUSE_S = 0.2
PATIENCE = Timeouts(first_s=120.0, between_s=120.0, total_s=3600.0)

Speak = Callable[[str], AsyncIterator[float]]


class Refused(Exception):
    """Raised if the gateway or the server has no capacity for a request."""


@dataclass(frozen=True)
class Way:
    """A way to the server.

    Attributes:
        name: One of WAYS.
        port: Port of the gateway or of the server's gRPC service.
    """

    name: str
    port: int

    @asynccontextmanager
    async def connection(self, is_flood: bool) -> AsyncIterator[Speak]:
        """Yield a function that requests speech over a connection of one of the two clients.

        The function yields the duration of each part of the audio, in seconds, and raises Refused.
        """
        if self.name == "grpc":
            async with SpeechClient(f"[::1]:{self.port}" if is_flood else f"127.0.0.1:{self.port}", PATIENCE) as client:
                yield lambda text: over_grpc(client, text)
            return
        local = ("127.0.0.2", 0) if is_flood and self.name == "hosts" else None
        headers = {"authorization": f"Bearer {KEYS[is_flood]}"} if self.name == "keys" else {}
        connector = aiohttp.TCPConnector(limit=1, local_addr=local)
        timeout = aiohttp.ClientTimeout(total=None)
        url = f"http://127.0.0.1:{self.port}"
        async with aiohttp.ClientSession(url, connector=connector, headers=headers, timeout=timeout) as session:
            yield lambda text: over_http(session, text)


async def over_http(session: aiohttp.ClientSession, text: str) -> AsyncIterator[float]:
    """Speak a text through the gateway; see `Way.connection`."""
    body = {"model": "tts-1", "input": text, "response_format": "pcm"}
    async with session.post("/v1/audio/speech", json=body) as answer:
        if answer.status == 429:
            raise Refused
        answer.raise_for_status()
        async for part in answer.content.iter_any():
            yield len(part) / 2 / DEFAULT_RATE


async def over_grpc(client: SpeechClient, text: str) -> AsyncIterator[float]:
    """Speak a text through the server's gRPC service; see `Way.connection`."""
    try:
        async for event in client.speak(text):
            yield event.duration_s
    except ServerFull:
        raise Refused from None


def shared(kind: Any) -> Any:
    """Return a number in memory that both processes share."""
    return multiprocessing.Value(kind)


@dataclass
class Counts:
    """Counters of the flood: seconds of audio received, texts spoken completely, and refused and failed requests."""

    audio_s: "Synchronized[float]" = field(default_factory=lambda: shared(ctypes.c_double))
    spoken: "Synchronized[int]" = field(default_factory=lambda: shared(ctypes.c_long))
    refused: "Synchronized[int]" = field(default_factory=lambda: shared(ctypes.c_long))
    failed: "Synchronized[int]" = field(default_factory=lambda: shared(ctypes.c_long))

    def read(self) -> dict[str, float]:
        """Return the values by name."""
        return {name: value.value for name, value in vars(self).items()}


def long_text() -> str:
    """Return a text of whole sentences with about LONG_CHARS characters."""
    num_chars = 0

    def fits(sentence: str) -> bool:
        nonlocal num_chars
        num_chars += len(sentence) + 1
        return num_chars <= LONG_CHARS

    return " ".join(takewhile(fits, texts()))


async def flood(way: Way, number: int, counts: Counts) -> None:
    """Send long texts over `number` connections without end."""
    text = long_text()

    async def connection() -> None:
        async with way.connection(is_flood=True) as speak:
            while True:
                count = counts.spoken
                try:
                    async for duration_s in speak(text):
                        counts.audio_s.value += duration_s
                except Refused:
                    count = counts.refused
                    await asyncio.sleep(RETRY_S)
                except Exception as error:  # a reply that was cut off; it is counted, and the flood continues
                    print(f"fairness: a reply of the flood failed: {error!r}", flush=True)
                    count = counts.failed
                count.value += 1

    await asyncio.gather(*(connection() for _ in range(number)))


def run_flood(way: Way, number: int, counts: Counts) -> None:
    """Run `flood` in this process."""
    asyncio.run(flood(way, number, counts))


@contextmanager
def flooding(way: Way, number: int) -> Iterator[Counts]:
    """Run a flood in its own process during the `with` block, and yield its counters."""
    counts = Counts()
    process = multiprocessing.Process(target=run_flood, args=(way, number, counts), daemon=True)
    process.start()
    try:
        yield counts
    finally:
        process.kill()
        process.join()


@dataclass
class Answers:
    """Outcome of short requests: seconds to the end of each complete reply, and the number of refused requests."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0

    @property
    def answered(self) -> float:
        """Share of the requests that were answered."""
        return len(self.seconds) / max(1, len(self.seconds) + self.refused)


async def ask(way: Way, seconds: float) -> Answers:
    """Send short requests, one after another, for a time in seconds."""
    answers = Answers()
    begun = time.perf_counter()
    async with way.connection(is_flood=False) as speak:
        while time.perf_counter() - begun < seconds:
            sent = time.perf_counter()
            try:
                async for _ in speak(SHORT):
                    pass
                answers.seconds.append(time.perf_counter() - sent)
            except Refused:
                answers.refused += 1
            await asyncio.sleep(PAUSE_S)
    return answers


async def measure(way: Way, number: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one way with `number` connections of the flood and return the record."""
    await ask(way, arguments.warm_up_s / 2)
    alone = await ask(way, arguments.seconds)
    rates: list[float] = []

    async def counted(counts: Counts, work: Any) -> dict[str, float]:
        before = counts.read()
        begun = time.perf_counter()
        await work
        after = counts.read()
        took_s = time.perf_counter() - begun
        rates.append((after["audio_s"] - before["audio_s"]) / took_s)
        return {name: after[name] - before[name] for name in after}

    answers = Answers()

    async def both() -> None:
        nonlocal answers
        answers = await ask(way, arguments.seconds)

    with flooding(way, number) as counts:
        await asyncio.sleep(arguments.warm_up_s)
        before = await counted(counts, asyncio.sleep(arguments.seconds))
        during = await counted(counts, both())
    p95 = percentiles("", answers.seconds).get("_p95")
    return {
        "way": way.name,
        "flooders": number,
        "answered": round(answers.answered, 4),
        "short_requests": len(answers.seconds) + answers.refused,
        **percentiles("alone", alone.seconds),
        **percentiles("during", answers.seconds),
        "over_alone_p95": p95 and round(p95 / percentiles("", alone.seconds)["_p95"], 2),
        "flood_alone": round(rates[0], 2),
        "flood_during": round(rates[1], 2),
        "flood_retained": round(rates[1] / max(rates[0], 1e-9), 3),
        "flood_spoken": before["spoken"] + during["spoken"],
        "flood_refused": before["refused"] + during["refused"],
        "flood_failed": before["failed"] + during["failed"],
    }


def main(arguments: argparse.Namespace) -> None:
    """Start a server, measure each way and number, and write the lines."""
    with tempfile.TemporaryDirectory() as folder:
        launch = Launch(arguments.model_repository, Path(folder), flags=("--address", "::"))
        launch.start()
        try:
            for name in arguments.ways:
                for number in arguments.flooders:
                    append_result(arguments.out, "fairness", measured(launch, name, number, arguments))
        finally:
            launch.stop()


def measured(launch: Launch, name: str, number: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the record of one way; a gateway is started for it if the way has one."""
    if name == "grpc":
        return asyncio.run(measure(Way(name, launch.grpc), number, arguments))
    with gateway(launch.address, keys=KEYS if name == "keys" else ()) as (url, _):
        return asyncio.run(measure(Way(name, int(url.rpartition(":")[2])), number, arguments))


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_line(
        __doc__,
        "fairness",
        serves=True,
        flooders=([45, 200], "numbers of connections of the flood"),
        seconds=(30.0, "duration of each part"),
        warm_up_s=(20.0, "time from the start of the flood to its first part, in seconds"),
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="default: all")
    return parser.parse_args(words)


if __name__ == "__main__":
    stop_on_sigterm()
    main(parse())
