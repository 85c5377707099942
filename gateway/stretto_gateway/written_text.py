"""A text that a caller writes while it is spoken."""

import asyncio
from collections.abc import AsyncIterator

from stretto_gateway.api_error import ApiError, refused
from stretto_gateway.config import Limits
from stretto_gateway.held import Held


class WrittenText:
    """Takes pieces, of as many characters and in such a time as the limits say, and gives what has come of them to who
    reads it.

    What was not read yet counts among what the gateway has `held`, until `close`.
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
        """Whether all of it has come."""
        return self._ended.is_set()

    def add(self, piece: str) -> None:
        """More of it. Of a text that is too long, or for which there is no memory, no more is taken: with what is
        missing it would be another one."""
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
        """Whoever still writes keeps a place from others."""
        told = f"text: it was not complete {self._limits.writing_s:g} s after its beginning"
        self._failure = self._failure or ApiError(408, told, "text", "timeout")
        self._changed.set()

    def end(self) -> None:
        """Nothing more comes."""
        self._timer.cancel()
        self._ended.set()
        self._changed.set()

    async def ended(self) -> None:
        """Until nothing more comes."""
        await self._ended.wait()

    async def pieces(self) -> AsyncIterator[str]:
        """What comes, as it comes; ApiError behind it where not all of it was taken."""
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
        """Nobody reads it any more; what still comes is passed over."""
        self._timer.cancel()
        self._unread, self._is_closed = "", True
        self._release(self._num_held)

    def _release(self, num_bytes: int) -> None:
        self._held.remove(num_bytes)
        self._num_held -= num_bytes
