"""How many utterances are made at once, and how many callers wait for one to end."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from stretto_gateway.api_error import ApiError
from stretto_gateway.caller import CALLER


@dataclass(frozen=True, slots=True, eq=False)
class Waiter:
    """A caller who waits; `is_given` is done when there is a place."""

    caller: str
    is_given: asyncio.Future[None]


class Admission:
    """Lets `max_active` in at once, the others in the order in which they came, `max_waiting` of them.

    Of both a caller may have as many as are left over: alone half of them, beside another that has half a quarter. So
    there is room for whoever comes next, however long those hold theirs who are there. `waited` is told for how many
    seconds each of them has waited.
    """

    def __init__(self, max_active: int, max_waiting: int, waited: Callable[[float], None]):
        self._max_active, self._max_waiting, self._waited = max_active, max_waiting, waited
        self._active = Counter[str]()
        self._waiting: list[Waiter] = []

    @property
    def num_active(self) -> int:
        """Places that are taken."""
        return self._active.total()

    @property
    def num_waiting(self) -> int:
        """Callers who wait."""
        return len(self._waiting)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place for CALLER, kept for as long as the block runs; ApiError 429 where too many wait for one."""
        caller, begun_s = CALLER.get(), time.monotonic()
        await self._enter(caller)
        self._waited(time.monotonic() - begun_s)
        try:
            yield
        finally:
            self._leave(caller)

    async def _enter(self, caller: str) -> None:
        if self._has_place(caller):
            self._active[caller] += 1
            return
        waiting = Counter(waiter.caller for waiter in self._waiting)
        if not is_room(waiting, caller, self._max_waiting):
            told = f"{len(self._waiting)} requests wait already, {waiting[caller]} of them yours; try again"
            raise ApiError(429, told, code="rate_limit_exceeded")
        waiter = Waiter(caller, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        try:
            await waiter.is_given  # by somebody who leaves
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            else:
                self._leave(caller)
            raise

    def _has_place(self, caller: str) -> bool:
        return is_room(self._active, caller, self._max_active)

    def _leave(self, caller: str) -> None:
        self._active[caller] -= 1
        if not self._active[caller]:
            del self._active[caller]  # of callers there is no end
        for waiter in list(self._waiting):
            if not waiter.is_given.done() and self._has_place(waiter.caller):
                self._active[waiter.caller] += 1
                self._waiting.remove(waiter)
                waiter.is_given.set_result(None)


def is_room(taken: Counter[str], caller: str, limit: int, more: int = 1) -> bool:
    """Whether `caller` may have so many more of `limit` beside what everybody has `taken`."""
    return taken[caller] + more <= limit - taken.total()
