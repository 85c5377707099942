"""Readers and streams on a fake server: correct answers pass, and each error is found."""

import asyncio
import random
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.chaos.load import READERS, Ask, GrpcAsk, Reader, Verdict, judge, read, take_references
from tests.client.fake_server import Chunk, ErrorText, FakeServer, Request, Step

LIMIT_S = 60.0
SOME = 1  # a seed with which readers take more than nothing before they leave
SPEAK = GrpcAsk("speak 0", "speak", lambda client: client.speak("a cat", seed=1))
MALFORMED = GrpcAsk("malformed 0", "malformed", lambda client: client.speak("a cat", voice="nobody"))
REFUSED = [ErrorText("invalid request: voice: expected one of …")]
SAMPLES = np.arange(640, dtype=np.int16)


def spoken(changed: int | None = None, events: int = 6) -> list[Step]:
    """Return an answer of `events` different events; number `changed` is wrong."""
    chunks: list[Step] = []
    for index in range(events):
        pcm = SAMPLES + np.int16(index + (50 if index == changed else 0))
        is_last = index == events - 1
        chunks.append(Chunk(index, is_16_bit=True, pcm=pcm, is_final=is_last, is_last=is_last, text=f"{index} "))
    return chunks


def run(
    script: Callable[[Request], list[Step]], *readers: Reader, limit_s: float = LIMIT_S, sent: Ask = SPEAK
) -> list[Verdict]:
    """Return the verdicts on a server's answers; the first two answers are the reference."""

    async def ask() -> list[Verdict]:
        server = FakeServer(lambda request: spoken() if len(server.requests) <= 2 else script(request))
        address = await server.start()
        try:
            references = await take_references({"grpc": address}, [sent], LIMIT_S)
            answers = [await read(sent, address, reader, random.Random(SOME), limit_s) for reader in readers]
            return [judge(references[sent.name], answer) for answer in answers]
        finally:
            await server.stop()

    return asyncio.run(ask())


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.chaos.load.SILENT_S", 0.01)
    monkeypatch.setattr("benchmarks.chaos.load.CRAWL_S", 0.01)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_every_reader_detects_a_changed_beginning(reader: Reader) -> None:
    assert run(lambda _: spoken(changed=0), reader) == [Verdict.WRONG]
