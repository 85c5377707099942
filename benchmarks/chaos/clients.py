"""Clients of a soak test: ways of reading, answers, and their verdicts.

The reference of an answer is the answer to the same request sent alone.
"""

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from benchmarks.chaos.requests import Ask, Event
from stretto_client import ClientError
from stretto_client.errors import TimedOut, Timeouts

TOLERANCE = 1e-4  # for samples in [-1, 1], because windows of many utterances are decoded as one batch
FULL_SCALE = {np.dtype(np.float32): 1.0, np.dtype(np.int16): 32_768.0}


class Verdict(StrEnum):
    """Judgement of an answer. WRONG, INCOMPLETE and HUNG must never occur.

    right: equal to the complete reference, or rejected like it. left: the client disconnected; its part equals the
    beginning of the reference. error: an error, before which the answer equals the beginning of the reference.
    """

    RIGHT = "right"
    LEFT = "left"
    ERROR = "error"
    WRONG = "wrong"
    INCOMPLETE = "incomplete"
    HUNG = "hung"


BAD = (Verdict.WRONG, Verdict.INCOMPLETE, Verdict.HUNG)


@dataclass(slots=True)
class Answer:
    """One answer, as far as it has been read.

    Attributes:
        pcm: Samples of each event with samples.
        error: Class of the error that ended it, or None.
        message: Message of the error.
        is_final: True if the last event has arrived.
        has_left: True if the reader disconnected.
        is_overdue: True if it did not end in time.
    """

    text: str = ""
    pcm: list[np.ndarray] = field(default_factory=list)
    error: str | None = None
    message: str = ""
    is_final: bool = False
    has_left: bool = False
    is_overdue: bool = False

    def samples(self) -> np.ndarray:
        """Return all samples so far [n], float32 or int16."""
        return np.concatenate(self.pcm) if self.pcm else np.zeros(0, np.float32)


def judge(reference: Answer, answer: Answer) -> Verdict:
    """Return the verdict on `answer`."""
    if answer.is_overdue:
        return Verdict.HUNG
    if reference.error is not None:
        if answer.error == reference.error or answer.has_left:
            return Verdict.RIGHT
        return Verdict.WRONG if answer.error is None else Verdict.ERROR
    if not begins(reference, answer) or answer.error == "RequestRefused":
        return Verdict.WRONG
    if answer.error is not None:
        return Verdict.ERROR
    if answer.has_left:
        return Verdict.LEFT
    is_whole = len(answer.samples()) == len(reference.samples()) and answer.text == reference.text
    return Verdict.RIGHT if answer.is_final and is_whole else Verdict.INCOMPLETE


def begins(reference: Answer, answer: Answer) -> bool:
    """Return True if the answer so far is the beginning of the reference."""
    expected, got = reference.samples(), answer.samples()
    if not reference.text.startswith(answer.text) or len(got) > len(expected):
        return False
    if not len(got):
        return True
    if got.dtype != expected.dtype:
        return False
    apart = np.abs(got.astype(np.float64) - expected[: len(got)].astype(np.float64))
    return bool(apart.max() <= TOLERANCE * FULL_SCALE[got.dtype])


@asynccontextmanager
async def relay(server: str) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """Yield a local address that forwards to `server`, and a function that resets every connection through it."""
    host, _, port = server.rpartition(":")
    writers: list[asyncio.StreamWriter] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while some := await reader.read(1 << 16):
                writer.write(some)
                await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection(host, int(port))
        except OSError:  # an effect of a fault
            writer.transport.abort()
            return
        writers.extend((writer, to_server))
        await asyncio.gather(copy(reader, to_server), copy(from_server, writer))

    def reset() -> None:
        for writer in writers:
            if not writer.is_closing():
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()

    listener = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}", reset
    finally:
        listener.close()
        reset()


SILENT_S = 8.0  # pause of a reader that stops
CRAWL_S = 0.3  # between two events
MAX_BEFORE = 4  # events before a reader disconnects, stops or is reset

Reader = Callable[[Ask, str, random.Random, Answer, Timeouts], Awaitable[None]]


async def listen(ask: Ask, server: str, draw: random.Random, answer: Answer, timeouts: Timeouts) -> None:
    """Read everything as it arrives."""
    async with ask.open(server, timeouts) as stream:
        await take(stream, answer)


async def crawl(ask: Ask, server: str, draw: random.Random, answer: Answer, timeouts: Timeouts) -> None:
    """Read everything slowly."""
    async with ask.open(server, timeouts) as stream:
        await take(stream, answer, pause_s=CRAWL_S)


async def stop(ask: Ask, server: str, draw: random.Random, answer: Answer, timeouts: Timeouts) -> None:
    """Read some events, nothing for a while, then the rest."""
    async with ask.open(server, timeouts) as stream:
        await take(stream, answer, draw.randrange(MAX_BEFORE))
        await asyncio.sleep(SILENT_S)
        await take(stream, answer)


async def cancel(ask: Ask, server: str, draw: random.Random, answer: Answer, timeouts: Timeouts) -> None:
    """Read some events, then disconnect."""
    async with ask.open(server, timeouts) as stream:
        await take(stream, answer, draw.randrange(MAX_BEFORE))
        answer.has_left = not answer.is_final


async def reset(ask: Ask, server: str, draw: random.Random, answer: Answer, timeouts: Timeouts) -> None:
    """Read some events, then reset the connection, so that the client sees an error."""
    async with relay(server) as (address, cut_off), ask.open(address, timeouts) as stream:
        await take(stream, answer, draw.randrange(MAX_BEFORE))
        if not answer.is_final:
            cut_off()
            answer.has_left = True
            with suppress(ClientError):
                await take(stream, answer)


READERS: dict[Reader, float] = {listen: 8, crawl: 2, stop: 1, cancel: 3, reset: 1}  # with relative frequencies


async def take(stream: AsyncIterator[Event], answer: Answer, events: int | None = None, pause_s: float = 0.0) -> None:
    """Read `events` events, or all, into `answer`; raise ClientError if the answer ends with one."""
    while events is None or events > 0:
        try:
            event = await anext(stream)
        except StopAsyncIteration:
            return
        answer.text += event.text
        if event.pcm is not None and event.pcm.size:
            answer.pcm.append(event.pcm.copy())
        answer.is_final = answer.is_final or event.is_final
        events = None if events is None else events - 1
        if pause_s:
            await asyncio.sleep(pause_s)


async def read(ask: Ask, server: str, reader: Reader, draw: random.Random, limit_s: float) -> Answer:
    """Return the answer to a request; a client that waits longer than `limit_s` for anything counts as hung."""
    answer = Answer()
    try:
        async with asyncio.timeout(3 * limit_s):
            await reader(ask, server, draw, answer, Timeouts(limit_s, limit_s, 2 * limit_s))
    except (TimedOut, TimeoutError) as error:
        answer.is_overdue, answer.message = True, str(error)
    except ClientError as error:
        answer.error, answer.message = type(error).__name__, str(error)
    return answer
