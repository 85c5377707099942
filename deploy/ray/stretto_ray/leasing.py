"""Servers for the gateway's utterances, leased from the deployment of servers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from stretto_client import ServerUnavailable
from stretto_gateway.routed import Choose, Lease

LEASE_S = 15.0  # in which somebody has to answer: Ray's router needs milliseconds, where processors are free
ATTEMPTS = 4


def leasing(handle_of: Callable[[], Any]) -> Choose:
    """What chooses a server by the router of the deployment whose handle that is."""

    @asynccontextmanager
    async def choose(key: str, refused: tuple[str, ...]) -> AsyncIterator[Lease]:
        handle, unready = handle_of().options(stream=True), list(refused)
        for _ in range(ATTEMPTS):
            responses = handle.lease.remote(key, unready)
            try:
                told = await _first(responses)
                if told["server"]:
                    lost = asyncio.ensure_future(_until_lost(responses))
                    try:
                        yield Lease(told["name"], told["server"], lost)
                    finally:
                        lost.cancel()
                    return
                unready.append(told["name"])
            finally:
                responses.cancel()
        raise ServerUnavailable("no server takes requests now; try again")

    return choose


async def _first(responses: Any) -> dict[str, Any]:
    """What the replica says of itself; ServerUnavailable where none says anything."""
    try:
        async with asyncio.timeout(LEASE_S):
            told: dict[str, Any] = await anext(responses)
    except (RayError, RayServeException, TimeoutError, StopAsyncIteration) as error:
        raise ServerUnavailable(f"no server takes requests now ({type(error).__name__}); try again") from None
    return told


async def _until_lost(responses: Any) -> None:
    """Return when the lease ends, which it does by itself only with its replica."""
    with suppress(RayError, RayServeException):
        async for _ in responses:
            pass
