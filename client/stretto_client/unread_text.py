"""Buffer for a text that is still being written."""

import asyncio
from collections.abc import AsyncIterable
from typing import Self

MAX_WAITING_CHARS = 65_536  # buffered for a fast writer; beyond, `pieces` is not read


class UnreadText:
    """Buffer that a task fills from `pieces`; `async with` starts and ends the task."""

    def __init__(self, pieces: AsyncIterable[str]):
        self._pieces = pieces
        self._text, self._is_complete = "", False
        self._failure: Exception | None = None
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_complete(self) -> bool:
        """True if all of the text has been taken."""
        return self._is_complete and not self._text and self._failure is None

    async def take(self, max_chars: int, patience_s: float | None = None) -> str:
        """Remove and return up to `max_chars` characters.

        Empty at the end of the text, or if none arrive within `patience_s`.
        An exception of `pieces` is raised after the text received before it has been taken.
        """
        try:
            async with asyncio.timeout(patience_s), self._changed:
                await self._changed.wait_for(lambda: bool(self._text) or self._is_complete)
        except TimeoutError:
            return ""
        async with self._changed:
            text, self._text = self._text[:max_chars], self._text[max_chars:]
            self._changed.notify_all()
        if not text and self._failure is not None:
            raise self._failure
        return text

    async def _read(self) -> None:
        try:
            async for piece in self._pieces:
                async with self._changed:
                    self._text += piece
                    self._changed.notify_all()
                    await self._changed.wait_for(lambda: len(self._text) < MAX_WAITING_CHARS)
        except Exception as error:
            self._failure = error
        async with self._changed:
            self._is_complete = True
            self._changed.notify_all()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        if close := getattr(self._pieces, "aclose", None):
            await close()
