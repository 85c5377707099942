"""Open WebSockets: their limit, their memory and their end at shutdown."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from stretto_gateway.admission import Held, is_room
from stretto_gateway.answers import ApiError
from stretto_gateway.caller import CALLER
from stretto_gateway.config import Limits
from stretto_gateway.realtime.audio_input import WindowQueue


class Sessions:
    """Open sessions per caller.

    A caller may open at most as many sessions as are free. So one caller alone gets half, and none can exhaust the
    limit.

    Attributes:
        held: Memory account of the sessions.
        windows: Queue of audio windows for voice activity detection.
        draining: Set when the gateway shuts down.
    """

    def __init__(self, limits: Limits):
        self._max_sessions, self.held = limits.max_sessions, Held(limits)
        self._open = Counter[str]()
        self.windows = WindowQueue()
        self.draining = asyncio.Event()

    @property
    def num_open(self) -> int:
        """Open sessions of all callers."""
        return self._open.total()

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Count a session of CALLER while the block runs.

        Raises:
            ApiError: 429 if too many sessions are open, 503 if the gateway shuts down.
        """
        if self.draining.is_set():
            raise ApiError(503, "the gateway takes no new sessions; try again", code="unavailable")
        caller = CALLER.get()
        if not is_room(self._open, caller, self._max_sessions):
            message = f"{self.num_open} sessions are open already, {self._open[caller]} of them yours; try again"
            raise ApiError(429, message, code="rate_limit_exceeded")
        self._open[caller] += 1
        try:
            yield
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]  # drop empty entries: the number of callers is unbounded
