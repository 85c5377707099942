"""Buffers for text and audio that a background task reads while earlier parts are being sent."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

Piece = TypeVar("Piece")
MAX_WAITING_CHARS = 65_536  # maximum buffered text; `pieces` is not read while the buffer is full


class Unread(ABC, Generic[Piece]):
    """Buffer that a background task fills from `pieces`. `async with` starts and stops the task."""

    def __init__(self, pieces: AsyncIterable[Piece]):
        self._pieces = pieces
        self._is_complete = False
        self._failure: Exception | None = None
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    def _add(self, piece: Piece) -> None:
        """Append a piece to the buffer."""

    @property
    @abstractmethod
    def _is_full(self) -> bool:
        """True if no more of `pieces` may be read until the buffer has been emptied further."""

    async def _read(self) -> None:
        try:
            async for piece in self._pieces:
                async with self._changed:
                    self._add(piece)
                    self._changed.notify_all()
                    await self._changed.wait_for(lambda: not self._is_full)
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


class UnreadText(Unread[str]):
    """Buffer of streamed text."""

    def __init__(self, pieces: AsyncIterable[str]):
        super().__init__(pieces)
        self._text = ""

    def _add(self, piece: str) -> None:
        self._text += piece

    @property
    def _is_full(self) -> bool:
        return len(self._text) >= MAX_WAITING_CHARS

    @property
    def is_complete(self) -> bool:
        """True if all of the text has been returned."""
        return self._is_complete and not self._text and self._failure is None

    def _end(self, max_chars: int) -> int:
        """Return the maximum number of characters that `pop` returns now; subclasses may end the text earlier."""
        return max_chars

    async def pop(self, max_chars: int, patience_s: float | None = None) -> str:
        """Remove and return buffered text; empty at the end, or if none arrives within `patience_s` seconds.

        An exception of `pieces` is raised once the text before it has been returned.
        """
        try:
            async with asyncio.timeout(patience_s), self._changed:
                await self._changed.wait_for(lambda: bool(self._text) or self._is_complete)
        except TimeoutError:
            return ""
        async with self._changed:
            end = self._end(max_chars)
            text = self._text[:end]
            self._text = self._text[end:]
            self._changed.notify_all()
        if not text and self._failure is not None:
            raise self._failure
        return text


SAMPLE_BYTES = 4  # float32
PART_S = 0.08  # minimum audio per part, in seconds
MAX_PART_S = 10.0  # maximum; more audio waits while a part is in transit


class UnreadAudio(Unread[NDArray[Any]]):
    """Buffer of live audio, which arrives as samples [n], floating-point or int16.

    Args:
        fill_after_s: Time without samples, in seconds, after which silence replaces them; None for no silence.
    """

    def __init__(self, pieces: AsyncIterable[NDArray[Any]], sample_rate: int, fill_after_s: float | None = None):
        super().__init__(pieces)
        self.sample_rate = sample_rate
        self._fill_after_s = fill_after_s
        self._is_filling = False
        self._waiting = bytearray()  # float32

    def _add(self, piece: NDArray[Any]) -> None:
        pcm = piece / 32768 if piece.dtype == np.int16 else piece
        self._waiting += np.ascontiguousarray(pcm, np.float32).data.cast("B") if len(pcm) else b""

    @property
    def _is_full(self) -> bool:
        return self._num_samples >= 2 * MAX_PART_S * self.sample_rate

    @property
    def _num_samples(self) -> int:
        return len(self._waiting) // SAMPLE_BYTES

    async def pop(self) -> tuple[NDArray[np.float32], bool]:
        """Wait for PART_S of samples or the end; return samples [n], and True if they end the audio."""
        await self._wait()
        async with self._changed:
            if self._failure is not None:
                raise self._failure
            num_bytes = int(MAX_PART_S * self.sample_rate) * SAMPLE_BYTES
            pcm = np.frombuffer(bytes(self._waiting[:num_bytes]), np.float32)
            del self._waiting[:num_bytes]
            self._changed.notify_all()
            return pcm, self._is_complete and not self._waiting

    async def _wait(self) -> None:
        """Wait for a part or the end; if none arrives in time, add silence, and again every PART_S."""
        patience_s = PART_S if self._is_filling else self._fill_after_s
        try:
            async with asyncio.timeout(patience_s), self._changed:
                await self._changed.wait_for(self._has_part)
            self._is_filling = False
        except TimeoutError:
            self._is_filling = True
            missing = max(0, round(PART_S * self.sample_rate) - self._num_samples)
            self._waiting += bytes(missing * SAMPLE_BYTES)

    def _has_part(self) -> bool:
        return self._num_samples >= PART_S * self.sample_rate or self._is_complete
