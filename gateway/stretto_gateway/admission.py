"""Admission control: limits on active and queued utterances, open WebSockets, and callers' memory.

This module also identifies callers, and cancels work when its caller disconnects.
"""

import asyncio
import ipaddress
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from starlette.types import Receive

from stretto_gateway.answers import ApiError
from stretto_gateway.config import Limits

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RequestHead:
    """Request identifiers. `traceparent` is the request's W3C Trace Context header."""

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


class CallerDisconnected(ApiError):
    """Raised if the client has disconnected."""

    def __init__(self) -> None:
        super().__init__(499, "the client has disconnected", code="client_closed_request")


async def unless_disconnected(receive: Receive, work: Awaitable[Result]) -> Result:
    """Return the result of `work`; cancel it if the client disconnects first.

    Args:
        receive: The request's ASGI `receive`.
        work: Work for the request.

    Raises:
        CallerDisconnected: The client disconnected.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_disconnected(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise CallerDisconnected
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.wait({working, gone})


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True, slots=True, eq=False)
class Waiter:
    """Queued caller. The future `is_given` is done once the caller has a slot."""

    caller: str
    is_given: asyncio.Future[None]


class Admission:
    """Slots for `max_active` concurrent utterances, and a FIFO queue of `max_waiting` requests.

    A caller may use at most as many units of either limit as remain free. A single caller gets half, and a second one a
    quarter. Some capacity therefore always remains for the next caller.

    Args:
        max_active: Maximum number of concurrent utterances.
        max_waiting: Maximum number of queued requests.
        waited: Callback that receives the queueing time of each admitted request, in seconds.
    """

    def __init__(self, max_active: int, max_waiting: int, waited: Callable[[float], None]):
        self._max_active, self._max_waiting, self._waited = max_active, max_waiting, waited
        self._active = Counter[str]()
        self._waiting: list[Waiter] = []

    @property
    def num_active(self) -> int:
        """Number of slots in use."""
        return self._active.total()

    @property
    def num_waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self._waiting)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold a slot for the caller (`CALLER`) during the `with` block; raise ApiError 429 if the queue is full."""
        caller, begun_s = CALLER.get(), time.monotonic()
        await self._enter(caller)
        self._waited(time.monotonic() - begun_s)
        try:
            yield
        finally:
            self._leave(caller)

    async def _enter(self, caller: str) -> None:
        if self._has_place(caller):
            self._active[caller] += 1
            return
        waiting = Counter(waiter.caller for waiter in self._waiting)
        if not is_room(waiting, caller, self._max_waiting):
            message = f"{len(self._waiting)} requests are waiting already, {waiting[caller]} of them yours; try again"
            raise ApiError(429, message, code="rate_limit_exceeded")
        waiter = Waiter(caller, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        try:
            await waiter.is_given  # set by `_leave`
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            else:
                self._leave(caller)
            raise

    def _has_place(self, caller: str) -> bool:
        return is_room(self._active, caller, self._max_active)

    def _leave(self, caller: str) -> None:
        self._active[caller] -= 1
        if not self._active[caller]:
            del self._active[caller]  # drop empty entries: the number of callers is unbounded
        for waiter in list(self._waiting):
            if not waiter.is_given.done() and self._has_place(waiter.caller):
                self._active[waiter.caller] += 1
                self._waiting.remove(waiter)
                waiter.is_given.set_result(None)


def is_room(taken: Counter[str], caller: str, limit: int, more: int = 1) -> bool:
    """Return True if a caller may take more units of a shared limit.

    Args:
        taken: Units taken by each caller.
        caller: The caller.
        limit: Total number of units.
        more: Number of units that the caller requests.
    """
    return taken[caller] + more <= limit - taken.total()


class Held:
    """Account of the memory held for callers, in bytes. The total is at most `max_held_bytes`.

    The guard has an instance for HTTP requests. It counts the part of each body beyond 64 KiB, recordings of stored
    voices, and audio of batches. WebSocket sessions share another instance. A caller may use at most as many bytes as
    remain free, so a single caller gets half, and none can exhaust the limit.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self._num_bytes = Counter[str]()

    @property
    def num_bytes(self) -> int:
        """Number of bytes held for all callers together."""
        return self._num_bytes.total()

    def add(self, num_bytes: int) -> None:
        """Add `num_bytes` to the memory held for the current caller (context variable CALLER).

        Raises:
            ApiError: 503 if the limit is exceeded.
        """
        caller = CALLER.get()
        own = self._num_bytes[caller]
        if num_bytes and not is_room(self._num_bytes, caller, self.limits.max_held_bytes, num_bytes):
            detail = f"{self.num_bytes} bytes are held for all clients, {own} of them yours"
            message = f"{detail}, and {num_bytes} more would exceed the limit; try again later, or delete items"
            raise ApiError(503, message, code="unavailable")
        self._num_bytes[caller] += num_bytes

    def remove(self, num_bytes: int) -> None:
        """Release `num_bytes` of the memory held for the current caller (context variable CALLER)."""
        caller = CALLER.get()
        self._num_bytes[caller] -= num_bytes
        if not self._num_bytes[caller]:
            del self._num_bytes[caller]  # drop empty entries: the number of callers is unbounded


class Sessions:
    """Open sessions of all callers.

    A caller may open at most as many sessions as remain free, so a single caller gets half, and none can exhaust the
    limit.

    Attributes:
        held: Memory account of the sessions.
        windows: Queue of audio windows for voice activity detection.
        draining: Event that is set when the gateway begins to shut down.
    """

    def __init__(self, limits: Limits):
        self._max_sessions, self.held = limits.max_sessions, Held(limits)
        self._open = Counter[str]()
        self.draining = asyncio.Event()

    @property
    def num_open(self) -> int:
        """Number of open sessions of all callers."""
        return self._open.total()

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Count a session of the current caller (`CALLER`) during the `with` block.

        Raises:
            ApiError: 429 if too many sessions are open, 503 if the gateway is shutting down.
        """
        if self.draining.is_set():
            raise ApiError(503, "the gateway accepts no new sessions; try again", code="unavailable")
        caller = CALLER.get()
        if not is_room(self._open, caller, self._max_sessions):
            message = f"{self.num_open} sessions are open already, {self._open[caller]} of them yours; try again"
            raise ApiError(429, message, code="rate_limit_exceeded")
        self._open[caller] += 1
        try:
            yield
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]  # drop empty entries: the number of callers is unbounded
