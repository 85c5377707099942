"""Polling by event-loop timers, which is much cheaper than polling in tasks."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def ticking(look: Callable[[], None], period_s: float) -> Iterator[None]:
    """Call `look`, which must not raise, every `period_s` seconds.

    Pollers with equal periods are aligned, because waking the event loop costs more than a poll.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def tick() -> None:
        nonlocal timer
        timer = set_timer()
        look()

    def set_timer() -> asyncio.TimerHandle:
        return loop.call_at((loop.time() // period_s + 1) * period_s, tick)

    timer = set_timer()
    try:
        yield
    finally:
        timer.cancel()


async def until(condition: Callable[[], bool], period_s: float) -> None:
    """Wait until `condition`, polled every `period_s` seconds, holds; errors of `condition` are raised."""
    done = asyncio.get_running_loop().create_future()

    def look() -> None:
        if done.done():
            return
        try:
            if condition():
                done.set_result(None)
        except Exception as error:
            done.set_exception(error)

    look()
    with ticking(look, period_s):
        await done
