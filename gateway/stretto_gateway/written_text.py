"""Text that a caller writes while it is spoken."""

import asyncio
from collections.abc import AsyncIterator

from stretto_gateway.api_error import ApiError, refused
from stretto_gateway.config import Limits
from stretto_gateway.held import Held


class WrittenText:
    """Queue of text pieces, with limits on their total length and on the time to write them.

    Unread text counts as held memory until `close`.
    """

    def __init__(self, limits: Limits, held: Held):
        self._limits, self._held = limits, held
        self._num_chars = self._num_held = 0
        self._unread, self._is_closed = "", False
        self._failure: ApiError | None = None
        self._changed, self._ended = asyncio.Event(), asyncio.Event()
        self._timer = asyncio.get_running_loop().call_later(limits.writing_s, self._expire)

    @property
    def is_ended(self) -> bool:
        """True if the text is complete."""
        return self._ended.is_set()

    def add(self, piece: str) -> None:
        """Append a piece.

        If the text becomes too long or there is no memory for it, this piece and all later ones are dropped, because a
        text with gaps would be wrong. `pieces` then raises the error.
        """
        if self._is_closed or self._failure is not None:
            return
        try:
            self._num_chars += len(piece)
            if self._num_chars > self._limits.max_input_chars:
                expected = f"at most {self._limits.max_input_chars} characters of an utterance"
                raise refused("text", expected, f"{self._num_chars} characters")
            num_bytes = len(piece.encode())
            self._held.add(num_bytes)
        except ApiError as error:
            self._failure = error
        else:
            self._num_held += num_bytes
            self._unread += piece
        self._changed.set()

    def _expire(self) -> None:
        """Fail after the time limit, because an unfinished text occupies a slot."""
        told = f"text: it was not complete {self._limits.writing_s:g} s after its beginning"
        self._failure = self._failure or ApiError(408, told, "text", "timeout")
        self._changed.set()

    def end(self) -> None:
        """Mark the text as complete."""
        self._timer.cancel()
        self._ended.set()
        self._changed.set()

    async def ended(self) -> None:
        """Wait until the text is complete."""
        await self._ended.wait()

    async def pieces(self) -> AsyncIterator[str]:
        """Yield pieces as they arrive; raise ApiError after the last one if part of the text was dropped."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            piece, self._unread = self._unread, ""
            self._release(len(piece.encode()))
            if piece:
                yield piece
            if self._failure is not None:
                raise self._failure
            if self.is_ended and not self._unread:
                return

    def close(self) -> None:
        """Discard unread text, and ignore later pieces."""
        self._timer.cancel()
        self._unread, self._is_closed = "", True
        self._release(self._num_held)

    def _release(self, num_bytes: int) -> None:
        self._held.remove(num_bytes)
        self._num_held -= num_bytes
