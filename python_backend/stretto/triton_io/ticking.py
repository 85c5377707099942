"""Looking again and again, by timers of the event loop: a task that wakes up to look costs many times as much."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def ticking(look: Callable[[], None], period_s: float) -> Iterator[None]:
    """Call `look`, which may not raise, every `period_s` seconds."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def tick() -> None:
        nonlocal timer
        timer = loop.call_later(period_s, tick)
        look()

    timer = loop.call_later(period_s, tick)
    try:
        yield
    finally:
        timer.cancel()


async def until(condition: Callable[[], bool], period_s: float) -> None:
    """Wait until `condition` holds, which is asked every `period_s` seconds; raises what it raises."""
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
