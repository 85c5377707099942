"""The WebSockets that are open: how many there may be, and when they are to end."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from stretto_gateway.api_error import ApiError
from stretto_gateway.config import Limits
from stretto_gateway.guard import Held


class Sessions:
    """Counts those that are open, and what they hold. `draining` is set once the gateway is to end."""

    def __init__(self, limits: Limits):
        self._max_sessions, self.held = limits.max_sessions, Held(limits)
        self.num_open = 0
        self.draining = asyncio.Event()

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place, for as long as the block runs; ApiError 429 where there is none, 503 where the gateway is to end."""
        if self.draining.is_set():
            raise ApiError(503, "the gateway takes no new sessions; try again", code="unavailable")
        if self.num_open >= self._max_sessions:
            raise ApiError(
                429, f"{self._max_sessions} sessions are open already; try again", code="rate_limit_exceeded"
            )
        self.num_open += 1
        try:
            yield
        finally:
            self.num_open -= 1
