"""Session over a WebSocket: its channel to the client, its tasks, and the loop that passes messages to its handler."""

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol, TypeVar

from starlette.types import Message
from starlette.websockets import WebSocketDisconnect

from stretto_gateway.admission import ClientEnd
from stretto_gateway.answers import ApiError, shown
from stretto_gateway.config import Limits
from stretto_gateway.connection import POLICY, EventRate
from stretto_gateway.gateway import Gateway

LOG = logging.getLogger("stretto_gateway")
# RFC 6455, section 7.4.1, and its registry
DONE = 1000
FAILED = 1011
RESTART = 1012
TRY_AGAIN = 1013
Error = TypeVar("Error", bound=BaseException)
MAX_ERRORS = 100  # per second; beyond it, the session ends, because errors cost the gateway more than the client
MAX_VALUES = 8192  # per event, because a value of one character may need a hundred times its size in memory


def new_id(prefix: str) -> str:
    """Return a new unique id."""
    return f"{prefix}_{secrets.token_hex(10)}"


class SessionEnd(ClientEnd):
    """End of a session.

    Args:
        code: Close code of the WebSocket; None if the client has disconnected.
        error: Error to send to the client instead of the reason.
    """

    def __init__(self, code: int | None = None, reason: str = "", error: ApiError | None = None):
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.error = error


class Socket(Protocol):
    """Connection to a client: a WebSocket, or another object that exchanges ASGI's WebSocket messages."""

    async def receive(self) -> Message: ...

    async def send_text(self, data: str) -> None:
        """Send a message of text; raise WebSocketDisconnect or RuntimeError if the client has disconnected."""
        ...

    async def send_bytes(self, data: bytes) -> None:
        """Send a message of bytes; raise WebSocketDisconnect or RuntimeError if the client has disconnected."""
        ...

    async def close(self, code: int, reason: str) -> None: ...


class SocketChannel:
    """Ordered stream of events to a client. The session ends if an event is not read within `stall_s` seconds."""

    def __init__(self, socket: Socket, stall_s: float):
        self._socket = socket
        self._stall_s = stall_s
        self._errors = EventRate(asyncio.get_running_loop(), MAX_ERRORS)

    async def send(self, event_type: str, **fields: Any) -> None:
        """Send an event; raise SessionEnd if the client has disconnected or does not read."""
        record = {"type": event_type, "event_id": new_id("event")} | fields
        await self._taken(self._socket.send_text(json.dumps(record)))

    async def send_bytes(self, data: bytes) -> None:
        """Send part of a file as a binary message; raise SessionEnd if the client has disconnected or does not read."""
        await self._taken(self._socket.send_bytes(data))

    async def _taken(self, sending: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._stall_s):
                await sending
        except TimeoutError:
            LOG.warning("a client read nothing for %g s and was disconnected", self._stall_s)
            raise SessionEnd from None
        except (WebSocketDisconnect, RuntimeError):  # RuntimeError: uvicorn has already closed it
            raise SessionEnd from None

    async def send_error(self, error: ApiError, event_id: str | None = None) -> None:
        """Send an error about the client's event `event_id`; raise SessionEnd beyond MAX_ERRORS errors per second."""
        self._count_error()
        await self.send("error", error=error.record()["error"] | {"event_id": event_id})

    def _count_error(self) -> None:
        self._errors.add()
        if self._errors.is_over:
            raise SessionEnd(POLICY, f"more than {MAX_ERRORS} messages were invalid within a second")

    async def close(self, end: SessionEnd) -> None:
        """Send the reason for the end of the session, if there is one, and close the WebSocket."""
        assert end.code is not None
        if end.error is not None or end.reason:
            with suppress(SessionEnd):
                await self.send_error(
                    end.error or ApiError(400, f"the session is over: {end.reason}", code="session_ended")
                )
        with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
            async with asyncio.timeout(self._stall_s):
                await self._socket.close(end.code, end.reason)


class SocketSession(Protocol):
    """Handler of a session's events."""

    async def handle(self, message: str | bytes | None) -> None:
        """Handle an event; send an error if it is invalid."""
        ...

    async def complete(self) -> None:
        """Wait until the output in progress is complete."""
        ...


class RequestedEnd:
    """End of a session that the client requests; the session ends once the output in progress is complete."""

    def __init__(self, session: SocketSession, tasks: asyncio.TaskGroup):
        self._session = session
        self._tasks = tasks
        self.is_asked = False

    def ask(self) -> None:
        """Begin to end the session; further calls have no effect."""
        if not self.is_asked:
            self.is_asked = True
            self._tasks.create_task(_end_when_complete(self._session, SessionEnd(DONE)))


async def _end_when_complete(session: SocketSession, end: SessionEnd) -> None:
    await session.complete()
    raise end


@asynccontextmanager
async def session_tasks(channel: SocketChannel) -> AsyncIterator[asyncio.TaskGroup]:
    """Run the tasks of a session.

    A SessionEnd in the `with` block or in a task ends all tasks and closes the WebSocket. An ApiError also ends the
    session, and is sent to the client.
    """
    end = SessionEnd()
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except* SessionEnd as ends:
        end = _first(ends)
    except* ApiError as errors:
        end = _end_by(_first(errors))
    if end.code is not None:
        await channel.close(end)


def _first(errors: BaseExceptionGroup[Error]) -> Error:
    """Return the first error in possibly nested groups."""
    one = errors.exceptions[0]
    return _first(one) if isinstance(one, BaseExceptionGroup) else one


def _end_by(error: ApiError) -> SessionEnd:
    """Return the SessionEnd for a session that failed with `error`."""
    return SessionEnd(TRY_AGAIN if error.status in (429, 503) else FAILED, error.code or "failed", error)


async def attend(
    gateway: Gateway,
    socket: Socket,
    session: SocketSession,
    tasks: asyncio.TaskGroup,
    patience_s: Callable[[], float],
) -> None:
    """Pass events to the session until it ends, waiting at most `patience_s()` seconds for each.

    SessionEnd is raised if the client has disconnected or is idle, after the maximum duration, and at shutdown.
    """
    tasks.create_task(_until_draining(gateway, session))
    tasks.create_task(_until_expired(gateway.limits, session))
    while True:
        left_s = patience_s()
        try:
            async with asyncio.timeout(left_s):
                message = await next_message(socket)
        except TimeoutError:
            raise SessionEnd(DONE, f"nothing was received for {left_s:g} s") from None
        if isinstance(message, str | bytes):  # other types of messages were delayed before their socket read them
            await gateway.sessions.pace.wait(message)
        await session.handle(message)


async def next_message(socket: Socket) -> Any:
    """Return the content of the next message; raise SessionEnd if the client has disconnected."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise SessionEnd
    return message["bytes"] if message.get("bytes") is not None else message.get("text")


async def _until_draining(gateway: Gateway, session: SocketSession) -> None:
    """End the session when the gateway shuts down, once the output in progress is complete."""
    await gateway.sessions.draining.wait()
    await _end_when_complete(session, SessionEnd(RESTART, "the gateway is shutting down"))


async def _until_expired(limits: Limits, session: SocketSession) -> None:
    """End the session at its maximum duration, after up to `drain_s` seconds for the output in progress."""
    await asyncio.sleep(limits.session_s)
    with suppress(TimeoutError):
        async with asyncio.timeout(limits.drain_s):
            await session.complete()
    raise SessionEnd(DONE, f"the session has reached its maximum duration of {limits.session_s:g} s")


def read_json(text: str | bytes | None) -> dict[str, Any]:
    """Return the JSON object in a message; raise ApiError if there is none, or it has too many values."""
    if not isinstance(text, str):
        raise ApiError(400, "expected an event as text, got bytes", code="invalid_event")
    if (got := num_values(text)) > MAX_VALUES:
        raise ApiError(400, f"expected an event of at most {MAX_VALUES} values, got {got}", code="invalid_event")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        raise ApiError(400, f"expected an event as JSON, got {shown(text)}", code="invalid_event") from None
    if not isinstance(record, dict):
        raise ApiError(400, f"expected an event as a JSON object, got {shown(record)}", code="invalid_event")
    return record


def num_values(text: str) -> int:
    """Return an upper bound on the number of values in JSON: its number of brackets and commas.

    If this exceeds MAX_VALUES, brackets and commas inside strings are excluded.
    """
    got = sum(map(text.count, "[{,"))
    if got > MAX_VALUES:
        bare = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
        got = sum(map(bare.count, "[{,"))
    return got
