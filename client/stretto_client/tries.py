"""Repeated requests while the server is full."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing

from stretto_client.errors import ServerFull
from stretto_client.speech_stream import SpeechEvent

Tries = Callable[[], AsyncGenerator[None, None]]  # generator that yields each time that a request may be sent
Events = AbstractAsyncContextManager[AsyncIterator[SpeechEvent]]
Begin = Callable[[], Events]  # function that sends a request
Speak = Callable[..., Events]
"""Function that speaks a text. Its keyword `piece` is the number of the piece to speak, if the text has several."""

ROOM_S = 0.25
PAUSES_S = (ROOM_S, 0.5, 1.0, 2.0, *(4.0,) * 14)  # before retries of a clause while the server is full: a minute in all


async def once() -> AsyncGenerator[None, None]:
    """Yield once, for a request that is not repeated."""
    yield


async def patiently() -> AsyncGenerator[None, None]:
    """Yield at once and after each pause of PAUSES_S: the tries of a later clause of a text.

    The pauses grow and vary, because each refusal costs the full server processor time: 200 clients that retry every
    0.25 s send it 800 requests per second.
    """
    yield
    for pause_s in PAUSES_S:
        await asyncio.sleep(random.uniform(0.5, 1.5) * pause_s)
        yield


async def events_in_turn(begin: Begin, tries: Tries) -> AsyncGenerator[SpeechEvent, None]:
    """Yield the events of a request, which is sent again in each of `tries` for as long as the server is full.

    This way, a long text that has been started is not cut off because other requests have arrived.
    """
    refusal: ServerFull | None = None
    async with aclosing(tries()) as attempts:
        async for _ in attempts:
            async with begin() as stream:
                try:
                    first = await anext(stream, None)
                except ServerFull as error:
                    refusal = error
                    continue
                await attempts.aclose()
                if first is not None:
                    yield first
                async for event in stream:
                    yield event
                return
    assert refusal is not None, "there is at least one try"
    raise refusal
