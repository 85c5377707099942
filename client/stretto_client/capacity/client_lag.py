"""Delay of the measuring client: if its event loop is busy, it reports arrivals late."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

LAG_PERIOD_S = 0.01


@asynccontextmanager
async def lag() -> AsyncIterator[list[float]]:
    """Yield a growing list of delays: how late, in seconds, this client's event loop resumes after short waits."""
    late_s = list[float]()

    async def watch() -> None:
        while True:
            due_s = time.perf_counter() + LAG_PERIOD_S
            await asyncio.sleep(LAG_PERIOD_S)
            late_s.append(time.perf_counter() - due_s)

    watching = asyncio.create_task(watch())
    try:
        yield late_s
    finally:
        watching.cancel()
