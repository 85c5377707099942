"""Order of rate-limited messages."""

import asyncio

import pytest

from stretto.proxy.infer_request import BadRequest
from stretto.proxy.triton_stream import LARGE_BYTES, Pace
from tests.patience import PATIENCE_S

LARGE = LARGE_BYTES + 1
NEVER = 1e-9  # bytes per second


async def let_run() -> None:
    """Run all tasks that do not wait for a timer."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_small_messages_and_the_first_large_one_are_not_paced() -> None:
    pace = Pace(NEVER)
    async with asyncio.timeout(PATIENCE_S):
        await pace.wait(LARGE)
        waiting = asyncio.create_task(pace.wait(LARGE))
        for _ in range(100):
            await pace.wait(LARGE_BYTES)
        await let_run()
    assert not waiting.done()
    waiting.cancel()


async def test_large_messages_are_forwarded_one_at_a_time_in_order() -> None:
    pace, went = Pace(1e9), []

    async def wait(number: int) -> None:
        await pace.wait(LARGE)
        went.append(number)

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*map(wait, range(5)))
    assert went == [0, 1, 2, 3, 4]


async def test_large_requests_beyond_the_queue_limit_are_refused() -> None:
    pace = Pace(NEVER, max_waiting_bytes=2 * LARGE)
    async with asyncio.timeout(PATIENCE_S):
        await pace.wait(LARGE)
    waiting = [asyncio.create_task(pace.wait(LARGE)) for _ in range(2)]
    await let_run()
    with pytest.raises(BadRequest, match=f"^{2 * LARGE} bytes of large requests are already waiting, ") as refused:
        await pace.wait(LARGE)
    assert refused.value.client_message.startswith("full: ")
    waiting[0].cancel()  # its client has left
    await asyncio.gather(waiting[0], return_exceptions=True)
    third = asyncio.create_task(pace.wait(LARGE))
    await let_run()
    assert not third.done()
    for each in (waiting[1], third):
        each.cancel()


async def test_forwarded_message_frees_capacity_for_the_next() -> None:
    pace = Pace(1e12, max_waiting_bytes=LARGE)
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(3):
            await pace.wait(LARGE)
