"""Fair scheduling of voice activity detection across sessions."""

import asyncio
from collections import deque

WINDOWS_AT_ONCE = 8  # some milliseconds of work per iteration of the event loop


class WindowQueue:
    """Queue of audio windows, of which WINDOWS_AT_ONCE are judged per iteration of the event loop, in order of request.

    Audio may arrive as fast as the network allows, and judging it blocks the event loop. The limit keeps other requests
    responsive.
    """

    def __init__(self) -> None:
        self._waiting = deque[asyncio.Future[None]]()
        self._is_scheduled = False

    async def turn(self) -> None:
        """Wait until one window may be judged; the caller has to judge it without another await."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append(turn)
        if not self._is_scheduled:
            self._is_scheduled = True
            loop.call_soon(self._grant)
        await turn

    def _grant(self) -> None:
        """Resume some waiters, and schedule the next round; their next windows queue up after the others."""
        num_left = WINDOWS_AT_ONCE
        while self._waiting and num_left:
            turn = self._waiting.popleft()
            if not turn.done():  # cancelled, because its session has ended
                turn.set_result(None)
                num_left -= 1
        self._is_scheduled = num_left < WINDOWS_AT_ONCE
        if self._is_scheduled:
            asyncio.get_running_loop().call_soon(self._grant)
