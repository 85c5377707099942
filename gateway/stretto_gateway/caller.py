"""Who asks, and work for a caller, for as long as the caller is there."""

import asyncio
import ipaddress
from collections.abc import Awaitable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from starlette.types import Receive

from stretto_gateway.api_error import ApiError

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What tells a request from others. traceparent: its caller's name for what it is a part of (W3C Trace Context)."""

    request_id: str = ""
    traceparent: str = ""

    @property
    def exemplar(self) -> dict[str, str] | None:
        """By which a figure tells of whom it is."""
        return {"request_id": self.request_id} if self.request_id else None


# Whose request this task works on, a key's digest or a `network`, and which. The guard sets both.
CALLER: ContextVar[str] = ContextVar("CALLER", default="")
REQUEST: ContextVar[RequestHead] = ContextVar("REQUEST", default=RequestHead())  # noqa: B039


def network(host: str) -> str:
    """Whose an address is: of IPv6 the /64 network, of which its owner has every address."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((int(address), 64), strict=False))


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
