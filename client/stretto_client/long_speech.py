"""A text of any length as one utterance: its clauses are asked for one after the other, each before it is needed."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Self

from stretto_client.clauses import halve
from stretto_client.errors import RequestCancelled, RequestRefused
from stretto_client.event import SpeechEvent
from stretto_client.joint import Joint
from stretto_client.speech_stream import SpeechStream

MAX_EVENTS_AHEAD = 16  # of a listener who is slower than the server; then the server is not read
MAX_WHOLE_CHARS = 80  # as long a text is spoken in one piece by every family, if it has no digits
TOO_LONG = "text: expected at most "  # how the server refuses a text that is too long once written out

Item = SpeechEvent | Exception
Speak = Callable[[str], SpeechStream]


def is_short(text: str) -> bool:
    """Whether no family needs the text in pieces. A number may become many words."""
    return len(text) <= MAX_WHOLE_CHARS and not any(map(str.isdigit, text))


class LongSpeech:
    """The events of several texts as those of one utterance, used as a SpeechStream is.

    The next clause is asked for when the one before has come, so while that is being heard; and no further ahead than
    MAX_EVENTS_AHEAD.
    """

    def __init__(self, speak: Speak, texts: Awaitable[list[str]]):
        self._items: asyncio.Queue[Item] = asyncio.Queue(MAX_EVENTS_AHEAD)
        self._task = asyncio.get_running_loop().create_task(produce(speak, texts, self._items))
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SpeechEvent:
        if self._is_over:
            raise StopAsyncIteration
        item = await self._items.get()
        if isinstance(item, Exception):
            self._is_over = True
            raise item
        self._is_over = item.is_final
        return item

    def cancel(self) -> None:
        """Give it up; the server stops working on it. A pending or later read raises RequestCancelled."""
        self._task.cancel()
        while not self._items.empty():
            self._items.get_nowait()
        self._items.put_nowait(RequestCancelled("the request was cancelled"))

    async def aclose(self) -> None:
        """Give it up and read no more."""
        self._is_over = True
        self._task.cancel()
        await asyncio.wait([self._task])

    def __del__(self) -> None:
        self._task.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


Speech = SpeechStream | LongSpeech


async def produce(speak: Speak, texts: Awaitable[list[str]], items: asyncio.Queue[Item]) -> None:
    """Put the events of all texts into `items`, or the error that ends them."""
    try:
        await _speak_all(speak, deque(await texts), items)
    except Exception as error:  # raised where the events are read
        await items.put(error)


async def _speak_all(speak: Speak, left: deque[str], items: asyncio.Queue[Item]) -> None:
    joint = Joint()
    while left:
        text = left.popleft()
        try:
            async with speak(text) as stream:
                async for event in stream:
                    await items.put(joint.joined(event, is_last=not left))
        except RequestRefused as refusal:  # before any event of this text
            if len(text) < 2 or not str(refusal).startswith(TOO_LONG):
                raise
            left.extendleft(reversed(halve(text)))
