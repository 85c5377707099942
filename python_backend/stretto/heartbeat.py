"""Heartbeats of a front-end process, which show the launcher that its event loop runs."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress

BEATS = "STRETTO_BEATS"  # environment variable: descriptor of the launcher's pipe; not set without a launcher
BEAT_S = 1.0
READY_BEAT, BEAT = b"r", b"."


async def beat(is_ready: Callable[[], Awaitable[bool]] | None = None) -> None:
    """Write a byte to the launcher's pipe every BEAT_S seconds, until cancelled.

    Args:
        is_ready: Returns True if the process accepts requests, which the byte then reports; None to report nothing.
            While it waits for an answer, no byte is written.
    """
    pipe = os.environ.get(BEATS)
    while pipe is not None:
        state = READY_BEAT if is_ready is not None and await is_ready() else BEAT
        with suppress(OSError):  # the pipe is full, or the launcher has exited
            os.write(int(pipe), state)
        await asyncio.sleep(BEAT_S)
