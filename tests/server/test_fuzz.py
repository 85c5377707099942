"""Thousands of nearly valid requests are each refused with a message or answered, and leave the server unchanged.

A seed and a number determine each request. FUZZ_SEED repeats a run; FUZZ_ONLY repeats only these requests:
    FUZZ_SEED=7 FUZZ_ONLY=12,340 python -m pytest tests/server/test_fuzz.py
"""

import asyncio
import json
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from random import Random

import grpc
import numpy as np
import pytest
import tritonclient.grpc

from benchmarks.chaos import checks
from benchmarks.harness import read_usage, served_processes
from stretto_client.client import key_headers
from tests.server.conftest import Server
from tests.server.fuzzing.calls import make_call
from tests.server.fuzzing.doors import Doors, Sent
from tests.server.fuzzing.http_requests import make_request
from tests.server.fuzzing.sessions import make_session
from tests.server.listening import tensor
from tests.server.openai_client import gateway_port
from tests.tiers import by_night

pytestmark = pytest.mark.server

# smallest share of refused and of answered requests at each endpoint: mutations are neither noise nor all valid
LEAST = 50
KINDS = [f"{door} {answer}" for door in ("gRPC", "HTTP", "WebSocket") for answer in ("answered", "refused")]
SHARES = {make_call: 5, make_request: 4, make_session: 1}
HUNDRED, AT_ONCE, SHOWN = 100, 16, 12
SENTENCE, SAME = "the garden door is open", {"seed": 7, "output": {"codes": True}, "chunking": {"deterministic": True}}
GROWN_MB = 128.0  # growth of a process by filling pools and caches


def make(seed: int, number: int) -> Sent:
    """Return the request with this number, which is always the same."""
    draw = Random(f"{seed}:{number}")
    (kind,) = draw.choices(list(SHARES), list(SHARES.values()))
    return kind(draw)


def batches(num_requests: int) -> Iterator[list[int]]:
    """Return the numbers of requests in batches of a hundred, or the numbers in FUZZ_ONLY."""
    only = os.environ.get("FUZZ_ONLY")
    if only:
        yield [int(number) for number in only.split(",")]
        return
    for first in range(0, num_requests, HUNDRED):
        yield list(range(first, min(first + HUNDRED, num_requests)))


class Fuzzed:
    """A server that gets mutated requests and is checked after each hundred, with the problems found."""

    def __init__(self, server: Server, seed: int) -> None:
        self._server, self._seed, self._logged = server, seed, len(server.log)
        self._reference = server.ask(SAME, text=SENTENCE)
        self._pids = self._processes()
        self._held: checks.Held | None = None
        self._rss_mb: dict[str, float] = {}
        self._num_failed = server.metric("failed_total")
        self.wrong: list[str] = []

    async def send(self, doors: Doors, numbers: Sequence[int]) -> None:
        """Send these requests, some at a time, then check the server."""
        places = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            sent = make(self._seed, number)
            async with places:
                found = await sent.ask(doors)
            self.wrong += [f"{number}, {sent.what}: {each}" for each in found]

        await asyncio.gather(*(one(number) for number in numbers))
        await asyncio.to_thread(self._look, f"{numbers[0]} to {numbers[-1]}")

    def _look(self, numbers: str) -> None:
        """Check that the reference sentence, the processes and their resources are unchanged."""
        answer = self._server.ask(SAME, text=SENTENCE)
        codes = [[event.get("codes") for event in spoken.events] for spoken in (answer, self._reference)]
        if answer.error or codes[0] != codes[1] or not np.array_equal(answer.pcm, self._reference.pcm):
            self.wrong.append(f"after {numbers}: the reference is another: {answer.error}")
        if (pids := self._processes()) != self._pids:
            self.wrong.append(f"after {numbers}: processes {pids}, not {self._pids}")
            self._pids = pids
        if (num_failed := self._server.metric("failed_total")) != self._num_failed:
            self.wrong.append(f"after {numbers}: {num_failed - self._num_failed:g} requests failed")
            self._num_failed = num_failed
        self._server.until(lambda: not any(self._look_at_figures().gauges.values()))
        if self._held is None:  # with the first hundred every pool has its threads
            self._held, self._rss_mb = self._look_at_figures(), self._memory()

    def _processes(self) -> dict[str, int]:
        """Return processes that must not be restarted; audio readers may be, if a file was too large."""
        assert self._server.launcher is not None
        return served_processes(self._server.launcher.pid)

    def _look_at_figures(self) -> checks.Held:
        assert self._server.launcher is not None
        return checks.look(self._server.metrics, self._server.launcher.pid)

    def _memory(self) -> dict[str, float]:
        usages = {name: read_usage(pid, 0.0) for name, pid in self._processes().items()}
        return {name: usage.rss_mb for name, usage in usages.items() if usage is not None}

    def finish(self) -> None:
        """Check resources, memory and the log at the end."""
        assert self._held is not None
        self.wrong += checks.left_over(self._held, self._look_at_figures())
        for name, rss_mb in self._memory().items():
            if rss_mb > self._rss_mb.get(name, rss_mb) + GROWN_MB:
                self.wrong.append(f"{name} has {rss_mb:.0f} MB, {self._rss_mb[name]:.0f} MB before")
        _, traceback, rest = self._server.log[self._logged :].partition("Traceback")
        if traceback:
            self.wrong.append(f"a traceback in the log: {rest[:3000]}")


def sealed_prompt(server: Server) -> dict[str, bytes]:
    """Return a prompt from the preprocessor, as a client with the key receives it."""
    client = tritonclient.grpc.InferenceServerClient(f"localhost:{server.grpc}")
    options = json.dumps({"seed": 1, "max_audio_s": 0.24})
    inputs = [tensor("text", "a cat"), tensor("options", options)]
    answer = client.infer("preprocessor", inputs, headers=key_headers(f"localhost:{server.grpc}"))
    client.close()
    rows = answer.as_numpy("rows")
    found = {"rows": rows.tobytes(), "prompt": answer.as_numpy("prompt").tobytes()}
    return found | {"width": np.int64(rows.shape[1]).tobytes()}


@asynccontextmanager
async def opened(server: Server) -> AsyncIterator[Doors]:
    """Yield the ports of the server and of a gateway in this process."""
    prompt = await asyncio.to_thread(sealed_prompt, server)
    key = tuple(key_headers(f"localhost:{server.grpc}").items())
    channel = grpc.aio.insecure_channel(f"localhost:{server.grpc}")
    async with channel, gateway_port(server.grpc) as port:
        yield Doors(channel, key, prompt, server.http, port)


@pytest.mark.parametrize("num_requests", [100, *by_night(1000, 10_000)])
async def test_fuzzed_requests_are_refused_or_answered(
    server: Server, num_requests: int, caplog: pytest.LogCaptureFixture
) -> None:
    seed = int(os.environ.get("FUZZ_SEED") or (secrets.randbelow(1 << 32) if num_requests > 1000 else 0))
    fuzzed = Fuzzed(server, seed)
    async with opened(server) as doors:
        for numbers in batches(num_requests):
            await fuzzed.send(doors, numbers)
    fuzzed.finish()
    if "FUZZ_ONLY" not in os.environ:
        rare = [kind for kind in KINDS if doors.answers[kind] < num_requests // LEAST]
        fuzzed.wrong += [f"the requests test little: {doors.answers}"] * bool(rare)
    fuzzed.wrong += [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    kinds = Counter(found.partition(": ")[2][:60] for found in fuzzed.wrong)
    told = "\n".join([*fuzzed.wrong[:SHOWN], *(f"{count} times {kind}" for kind, count in kinds.most_common())])
    assert not fuzzed.wrong, f"FUZZ_SEED={seed}:\n{told}"
