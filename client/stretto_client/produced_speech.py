"""Stream of events that a task in this process generates."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Self

from stretto_client.errors import RequestCancelled
from stretto_client.speech_stream import SpeechEvent

MAX_EVENTS_AHEAD = 16  # maximum number of buffered events; the server's stream is not read while the buffer is full

Item = SpeechEvent | Exception
Items = asyncio.Queue[Item]


class ProducedSpeech:
    """Stream of the events that `produce` puts into a queue, with the interface of SpeechStream.

    The last event must be final. An exception in `produce` is raised where the events are read.
    """

    def __init__(self, produce: Callable[[Items], Awaitable[None]]):
        self._items: Items = asyncio.Queue(MAX_EVENTS_AHEAD)
        self._task = asyncio.get_running_loop().create_task(_run(produce, self._items))
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SpeechEvent:
        if self._is_over:
            raise StopAsyncIteration
        try:
            item = await self._items.get()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if isinstance(item, Exception):
            self._is_over = True
            raise item
        self._is_over = item.is_final
        return item

    def cancel(self) -> None:
        """Cancel the utterance here and on the server; a pending or later read raises RequestCancelled."""
        self._task.cancel()
        while not self._items.empty():
            self._items.get_nowait()
        self._items.put_nowait(RequestCancelled("the request was cancelled"))

    async def aclose(self) -> None:
        """Cancel the utterance and end the iteration."""
        self._is_over = True
        self._task.cancel()
        await asyncio.wait([self._task])

    def __del__(self) -> None:
        self._task.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def _run(produce: Callable[[Items], Awaitable[None]], items: Items) -> None:
    try:
        await produce(items)
    except Exception as error:  # raised where the events are read
        await items.put(error)
