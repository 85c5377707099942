"""Admission control: limits on active and queued utterances, open WebSockets, and callers' memory.

This module also identifies callers, and cancels work when its caller disconnects.
"""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from numpy.typing import NDArray
from starlette.types import Receive

from stretto_client import ModelProfile
from stretto_client.fair_threads import CALLER as CALLER
from stretto_client.growing_transcript import SAMPLE_BYTES
from stretto_contract.limits import FairLimit, Rotation
from stretto_gateway.answers import ApiError
from stretto_gateway.config import Limits

Result = TypeVar("Result")
UNKNOWN_SHARE = 8  # up to one session in eight is for clients that have not identified themselves
MAX_EVENT_WORK = 2_000_000  # per second and caller, in units that take the event loop 0.1 to 0.3 µs
EVENT_WORK = 128  # units for every event, however small
UNIT_BYTES = 16  # bytes of an event that count as one unit
BURST_S = 0.01  # work of a caller's events that need not wait


@dataclass(frozen=True, slots=True)
class RequestHead:
    """Request identifiers. `traceparent` is the request's W3C Trace Context header."""

    request_id: str = ""
    traceparent: str = ""

    @property
    def exemplar(self) -> dict[str, str] | None:
        """Labels that link a metric to the request; None if there is no request id."""
        return {"request_id": self.request_id} if self.request_id else None


# The request of the current task. The guard sets it, and the task's caller (digest of the key, or `host_of`).
REQUEST: ContextVar[RequestHead] = ContextVar("REQUEST", default=RequestHead())  # noqa: B039


class CallerDisconnected(ApiError):
    """Raised if the client has disconnected."""

    def __init__(self) -> None:
        super().__init__(499, "the client has disconnected", code="client_closed_request")


class ClientEnd(Exception):
    """Base class of exceptions that end a response because its client has disconnected or does not read."""


CLIENT_LEFT = (asyncio.CancelledError, GeneratorExit, ClientEnd)  # exceptions that end a response without an error


async def unless_disconnected(receive: Receive, work: Awaitable[Result]) -> Result:
    """Return the result of `work`; if the client disconnects first, cancel it and raise CallerDisconnected."""
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
class SlotWaiter:
    """Queued caller. The future `is_given` is done once the caller has a slot."""

    caller: str
    is_given: asyncio.Future[None]


class Admission:
    """Slots for `max_active` concurrent utterances, and a queue of `max_waiting` requests.

    Callers take turns, and share both limits fairly (`FairLimit`).

    Args:
        waited: Callback that receives the queueing time of each admitted request, in seconds.
    """

    def __init__(self, max_active: int, max_waiting: int, waited: Callable[[float], None]):
        self._active = FairLimit(max_active)
        self._queued = FairLimit(max_waiting)
        self._waited = waited
        self._waiting = Rotation[SlotWaiter]()
        self._watchers: list[Callable[[], None]] = []

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call a function each time that a slot is taken or released, or a request begins to wait."""
        self._watchers.append(watcher)

    @property
    def num_active(self) -> int:
        return self._active.held

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold a slot for the caller (`CALLER`) during the `with` block; raise ApiError 429 if the queue is full."""
        caller = CALLER.get()
        begun_s = time.monotonic()
        await self._enter(caller)
        self._waited(time.monotonic() - begun_s)
        try:
            yield
        finally:
            self._leave(caller)

    async def _enter(self, caller: str) -> None:
        if self._active.has_free(caller):
            self._active.acquire(caller)
            self._tell_watchers()
            return
        if not self._queued.has_free(caller):
            num_held = self._queued.held_by(caller)
            message = f"{len(self._waiting)} requests are waiting already, {num_held} of them yours; try again"
            raise ApiError(429, message, code="rate_limit_exceeded")
        waiter = SlotWaiter(caller, asyncio.get_running_loop().create_future())
        self._waiting.put(caller, waiter)
        self._queued.acquire(caller)
        self._tell_watchers()
        try:
            await waiter.is_given  # set by `_leave`
        except asyncio.CancelledError:
            if self._waiting.remove(caller, waiter):
                self._queued.release(caller)
            else:
                self._leave(caller)
            self._tell_watchers()
            raise

    def _leave(self, caller: str) -> None:
        self._active.release(caller)
        while (waiter := self._waiting.pop(self._active.has_free)) is not None:
            self._queued.release(waiter.caller)
            self._active.acquire(waiter.caller)
            if not waiter.is_given.done():  # otherwise its cancelled task runs next, and leaves
                waiter.is_given.set_result(None)
        self._tell_watchers()

    def _tell_watchers(self) -> None:
        for watcher in self._watchers:
            watcher()


class Held:
    """Account of the memory held for callers, in bytes. The total is at most `max_held_bytes`.

    The guard has an instance for HTTP requests. It counts the part of each body beyond 64 KiB, recordings of stored
    voices, and audio of batches. WebSocket sessions share another instance. Callers share the memory fairly
    (`FairLimit`).
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self._bytes = FairLimit(limits.max_held_bytes)

    @property
    def num_bytes(self) -> int:
        return self._bytes.held

    def add(self, num_bytes: int) -> None:
        """Add to the memory held for the current caller (`CALLER`); raise ApiError 503 if the limit is exceeded."""
        caller = CALLER.get()
        if num_bytes and not self._bytes.has_free(caller, num_bytes):
            detail = f"{self.num_bytes} bytes are held for all clients, {self._bytes.held_by(caller)} of them yours"
            message = f"{detail}, and {num_bytes} more would exceed the limit; try again later, or delete items"
            raise ApiError(503, message, code="unavailable")
        self._bytes.acquire(caller, num_bytes)

    def remove(self, num_bytes: int) -> None:
        """Release `num_bytes` of the memory held for the current caller (`CALLER`)."""
        self._bytes.release(CALLER.get(), num_bytes)


class KeptAudio:
    """Memory account of the audio that a live transcript keeps; released when the `with` block ends.

    Only transcripts of models that read whole recordings keep audio.
    """

    def __init__(self, held: Held, profile: ModelProfile):
        self._held = held
        self._sample_bytes = SAMPLE_BYTES if profile.continues_transcripts else 0
        self._num_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.remove(self._num_bytes)

    async def counted(self, pieces: AsyncIterable[NDArray[Any]]) -> AsyncIterator[NDArray[Any]]:
        """Yield the samples, and count those that are kept; raise ApiError if the memory limit is exceeded."""
        async for pcm in pieces:
            num_bytes = self._sample_bytes * len(pcm)
            self._held.add(num_bytes)
            self._num_bytes += num_bytes
            yield pcm


class EventPace:
    """Limit on the rate at which each caller's events are read, because reading them occupies the event loop.

    All sessions of a caller share one rate, so that many sessions do not delay other callers more than one would.
    """

    def __init__(self) -> None:
        self._free_at: dict[str, float] = {}  # for each caller, time at which all its events will have been read

    async def wait(self, event: str | bytes) -> None:
        """Wait until an event of the current caller (`CALLER`) may be read."""
        delay_s = self.delay_s(CALLER.get(), work_of(event), asyncio.get_running_loop().time())
        if delay_s > 0:
            await asyncio.sleep(delay_s)

    def delay_s(self, caller: str, work: int, now: float) -> float:
        """Count the work of an event, and return the time in seconds for which it has to wait."""
        if caller not in self._free_at:  # the number of distinct hosts is unbounded
            self._free_at = {name: free_at for name, free_at in self._free_at.items() if free_at > now}
        begins_at = max(now, self._free_at.get(caller, now))
        self._free_at[caller] = begins_at + work / MAX_EVENT_WORK
        return max(0.0, begins_at - now - BURST_S)


def work_of(event: str | bytes) -> int:
    """Return an estimate of the work that an event causes: its size, and the signs around values if it is JSON."""
    num_signs = sum(map(event.count, '[{,"')) if isinstance(event, str) else 0
    return EVENT_WORK + len(event) // UNIT_BYTES + num_signs


class OpenSessions:
    """Open sessions of all callers, who share them fairly (`FairLimit`).

    Attributes:
        draining: Event that is set when the gateway begins to shut down.
    """

    def __init__(self, limits: Limits):
        self._open = FairLimit(limits.max_sessions)
        self._unknown = FairLimit(max(1, limits.max_sessions // UNKNOWN_SHARE))
        self.held = Held(limits)
        self.pace = EventPace()
        self.draining = asyncio.Event()

    @property
    def num_open(self) -> int:
        return self._open.held + self._unknown.held

    @contextmanager
    def slot(self, is_known: bool = True) -> Iterator[None]:
        """Count a session of the caller (`CALLER`) in the block; raise ApiError 429 for too many, 503 at shutdown.

        Args:
            is_known: False for a client that has yet to identify itself; such clients share separate slots.
        """
        if self.draining.is_set():
            raise ApiError(503, "the gateway accepts no new sessions; try again", code="unavailable")
        caller = CALLER.get()
        shares = self._open if is_known else self._unknown
        with shares.reserving(caller) as is_left:
            if not is_left:
                num_held = shares.held_by(caller)
                message = f"{shares.held} sessions are open already, {num_held} of them yours; try again"
                raise ApiError(429, message, code="rate_limit_exceeded")
            yield
