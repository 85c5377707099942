"""How clients read: to the end, slowly, not at all for a while, not to the end, or over a connection that is reset."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from benchmarks.chaos.answers import Answer
from benchmarks.chaos.doors import Ask, Heard
from benchmarks.chaos.relay import relay
from stretto_client import ClientError
from stretto_client.errors import TimedOut, Timeouts

SILENT_S = 8.0  # a reader that stops goes on after that
CRAWL_S = 0.3  # between two events
MAX_BEFORE = 4  # events before a reader leaves, stops or is cut off

Reader = Callable[[Ask, str, random.Random, Answer, Timeouts], Awaitable[None]]


async def listen(ask: Ask, server: str, draw: random.Random, answer: Answer, timeouts: Timeouts) -> None:
    """All of it, as it comes."""
    async with ask.open(server, timeouts) as stream:
        await take(stream, answer)


async def crawl(ask: Ask, server: str, draw: random.Random, answer: Answer, timeouts: Timeouts) -> None:
    """All of it, slowly."""
    async with ask.open(server, timeouts) as stream:
        await take(stream, answer, pause_s=CRAWL_S)


async def stop(ask: Ask, server: str, draw: random.Random, answer: Answer, timeouts: Timeouts) -> None:
    """Some, nothing for a while, and then the rest."""
    async with ask.open(server, timeouts) as stream:
        await take(stream, answer, draw.randrange(MAX_BEFORE))
        await asyncio.sleep(SILENT_S)
        await take(stream, answer)


async def cancel(ask: Ask, server: str, draw: random.Random, answer: Answer, timeouts: Timeouts) -> None:
    """Some of it, and away."""
    async with ask.open(server, timeouts) as stream:
        await take(stream, answer, draw.randrange(MAX_BEFORE))
        answer.has_left = not answer.is_final


async def reset(ask: Ask, server: str, draw: random.Random, answer: Answer, timeouts: Timeouts) -> None:
    """Some of it, over a connection that is then reset: what was on its way is lost, and the client sees an error."""
    async with relay(server) as (address, cut_off), ask.open(address, timeouts) as stream:
        await take(stream, answer, draw.randrange(MAX_BEFORE))
        if not answer.is_final:
            cut_off()
            answer.has_left = True
            with suppress(ClientError):
                await take(stream, answer)


READERS: dict[Reader, float] = {listen: 8, crawl: 2, stop: 1, cancel: 3, reset: 1}  # and how often each comes


async def take(stream: AsyncIterator[Heard], answer: Answer, events: int | None = None, pause_s: float = 0.0) -> None:
    """Put what comes into `answer`: so many events, or all. ClientError where it ends with one."""
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
    """The answer to a request, whatever comes of it. limit_s: who has waited so long for anything is hung."""
    answer = Answer()
    try:
        async with asyncio.timeout(3 * limit_s):
            await reader(ask, server, draw, answer, Timeouts(limit_s, limit_s, 2 * limit_s))
    except (TimedOut, TimeoutError) as error:
        answer.is_overdue, answer.said = True, str(error)
    except ClientError as error:
        answer.error, answer.said = type(error).__name__, str(error)
    return answer
