"""Identity of the caller, and cancellation of work when the caller disconnects."""

import asyncio
import ipaddress
from collections.abc import Awaitable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from starlette.types import Receive

from stretto_gateway.answers import ApiError

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RequestHead:
    """Request identifiers. `traceparent`: the request's W3C Trace Context header."""

    request_id: str = ""
    traceparent: str = ""

    @property
    def exemplar(self) -> dict[str, str] | None:
        """Labels that link a metric to the request; None if there is no request id."""
        return {"request_id": self.request_id} if self.request_id else None


# The caller of the current task (digest of the key, or `network`) and its request. The guard sets both.
CALLER: ContextVar[str] = ContextVar("CALLER", default="")
REQUEST: ContextVar[RequestHead] = ContextVar("REQUEST", default=RequestHead())  # noqa: B039


def network(host: str) -> str:
    """Return the fair-share key of a client address: the IPv4 address, or the /64 network of an IPv6 address."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((int(address), 64), strict=False))


class CallerGone(ApiError):
    """The client has disconnected."""

    def __init__(self) -> None:
        super().__init__(499, "the client has disconnected", code="client_closed_request")


async def unless_gone(receive: Receive, work: Awaitable[Result]) -> Result:
    """Return the result of `work`, which is cancelled if the client disconnects first.

    Args:
        receive: ASGI's `receive` of the request.
        work: Work for the request.

    Raises:
        CallerGone: The client disconnected.
    """
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
