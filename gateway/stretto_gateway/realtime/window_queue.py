"""Whose sound is judged next, of all sessions together."""

import asyncio
from collections import deque

WINDOWS_AT_ONCE = 8  # some milliseconds of work; then others go on


class WindowQueue:
    """Lets WINDOWS_AT_ONCE windows of all sessions be judged in a round of the event loop, in the order in which they
    are asked for: sound may come as fast as a network carries it, and nobody else is answered while it is judged."""

    def __init__(self) -> None:
        self._waiting = deque[asyncio.Future[None]]()
        self._is_scheduled = False

    async def turn(self) -> None:
        """Until one window may be judged, which has to be done without waiting for anything else."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append(turn)
        if not self._is_scheduled:
            self._is_scheduled = True
            loop.call_soon(self._grant)
        await turn

    def _grant(self) -> None:
        """Let some on, in the next round of the loop, in which the next of these comes behind them."""
        num_left = WINDOWS_AT_ONCE
        while self._waiting and num_left:
            turn = self._waiting.popleft()
            if not turn.done():  # nobody waits any more whose session has ended
                turn.set_result(None)
                num_left -= 1
        self._is_scheduled = num_left < WINDOWS_AT_ONCE
        if self._is_scheduled:
            asyncio.get_running_loop().call_soon(self._grant)
