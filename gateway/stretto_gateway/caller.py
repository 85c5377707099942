"""Work for a caller, for as long as the caller is there."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.types import Receive

from stretto_gateway.api_error import ApiError

Result = TypeVar("Result")


class CallerGone(ApiError):
    """Nobody is there any more to read the answer."""

    def __init__(self) -> None:
        super().__init__(499, "the caller has gone", code="client_closed_request")


async def unless_gone(receive: Receive, work: Awaitable[Result]) -> Result:
    """The result of `work`, which is cancelled when the caller leaves; CallerGone then."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise CallerGone
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.wait({working, gone})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
