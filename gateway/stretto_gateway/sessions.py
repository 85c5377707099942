"""The WebSockets that are open: how many there may be, and when they are to end."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from stretto_gateway.admission import is_room
from stretto_gateway.api_error import ApiError
from stretto_gateway.caller import CALLER
from stretto_gateway.config import Limits
from stretto_gateway.held import Held
from stretto_gateway.realtime.window_queue import WindowQueue


class Sessions:
    """Counts those that are open, and what they hold; `windows` are judged in turns. `draining` is set once the gateway
    is to end.

    A caller may open as many as are left over: alone half of them, and nobody can take them all.
    """

    def __init__(self, limits: Limits):
        self._max_sessions, self.held = limits.max_sessions, Held(limits)
        self._open = Counter[str]()
        self.windows = WindowQueue()
        self.draining = asyncio.Event()

    @property
    def num_open(self) -> int:
        """Of all callers."""
        return self._open.total()

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for CALLER, for as long as the block runs; ApiError 429 where there is none, 503 where the gateway is
        to end."""
        if self.draining.is_set():
            raise ApiError(503, "the gateway takes no new sessions; try again", code="unavailable")
        caller = CALLER.get()
        if not is_room(self._open, caller, self._max_sessions):
            told = f"{self.num_open} sessions are open already, {self._open[caller]} of them yours; try again"
            raise ApiError(429, told, code="rate_limit_exceeded")
        self._open[caller] += 1
        try:
            yield
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]  # of callers there is no end
