"""Looking again and again, by timers of the event loop: a task that wakes up to look costs many times as much."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def ticking(look: Callable[[], None], period_s: float) -> Iterator[None]:
    """Call `look`, which may not raise, every `period_s` seconds.

    Whoever looks as often looks at the same time: to wake the event loop costs more than a look.
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
