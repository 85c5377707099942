"""How many utterances are made at once, and how many callers wait for one to end."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from stretto_gateway.api_error import ApiError


class Admission:
    """Lets `max_active` in at once, the others in the order in which they came, `max_waiting` of them."""

    def __init__(self, max_active: int, max_waiting: int):
        self._max_active, self._max_waiting = max_active, max_waiting
        self.num_active = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def num_waiting(self) -> int:
        """Callers who wait."""
        return len(self._waiting)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place, kept for as long as the block runs; ApiError 429 where too many wait for one."""
        await self._enter()
        try:
            yield
        finally:
            self._leave()

    async def _enter(self) -> None:
        if self.num_active < self._max_active:
            self.num_active += 1
            return
        if len(self._waiting) >= self._max_waiting:
            raise ApiError(429, f"{self._max_waiting} requests wait already; try again", code="rate_limit_exceeded")
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn  # which whoever leaves sets: the place goes from one to the other
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()
            else:
                self._waiting.remove(turn)
            raise

    def _leave(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.num_active -= 1
