"""Event loop of a WebSocket session, until the client, a limit or the gateway's shutdown ends it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

from starlette.websockets import WebSocket

from stretto_gateway.answers import ApiError
from stretto_gateway.gateway import Gateway
from stretto_gateway.realtime.events import Channel, SessionEnd

DONE, FAILED, RESTART, TRY_AGAIN = 1000, 1011, 1012, 1013  # RFC 6455, section 7.4.1, and its registry
Error = TypeVar("Error", bound=BaseException)


class SocketSession(Protocol):
    """Handler of the events of a session."""

    async def handle(self, message: str | None) -> None:
        """Handle an event, or send an error about it."""
        ...

    async def complete(self) -> None:
        """Wait until the output in progress is complete."""
        ...


@asynccontextmanager
async def session_tasks(channel: Channel) -> AsyncIterator[asyncio.TaskGroup]:
    """Run the tasks of a session; SessionEnd in the block or in a task ends all of them and closes the socket.

    An ApiError ends the session as well and is sent to the client.
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
    """Return the first of the errors, which may be nested groups."""
    one = errors.exceptions[0]
    return _first(one) if isinstance(one, BaseExceptionGroup) else one


def _end_by(error: ApiError) -> SessionEnd:
    """Return the end of a session that has failed."""
    return SessionEnd(TRY_AGAIN if error.status in (429, 503) else FAILED, error.code or "failed", error)


async def attend(
    gateway: Gateway,
    socket: WebSocket,
    session: SocketSession,
    tasks: asyncio.TaskGroup,
    patience_s: Callable[[], float],
) -> None:
    """Pass events to the session until it ends.

    Args:
        gateway: The gateway.
        socket: The client's WebSocket.
        session: Handler of the events.
        tasks: Tasks of the session.
        patience_s: Returns the time in seconds to wait for the next event.

    Raises:
        SessionEnd: The client disconnected or was idle too long, the session lasted too long, or the gateway shuts
            down.
    """
    tasks.create_task(_until_draining(gateway, session))
    tasks.create_task(_until_expired(gateway.limits.session_s))
    while True:
        left_s = patience_s()
        try:
            async with asyncio.timeout(left_s):
                message = await socket.receive()
        except TimeoutError:
            raise SessionEnd(DONE, f"nothing was received for {left_s:g} s") from None
        if message["type"] == "websocket.disconnect":
            raise SessionEnd
        await session.handle(message.get("text"))


async def _until_draining(gateway: Gateway, session: SocketSession) -> None:
    """End the session when the gateway shuts down, once the output in progress is complete."""
    await gateway.sessions.draining.wait()
    await session.complete()
    raise SessionEnd(RESTART, "the gateway is shutting down")


async def _until_expired(session_s: float) -> None:
    """End the session after `session_s` seconds."""
    await asyncio.sleep(session_s)
    raise SessionEnd(DONE, f"it lasts {session_s:g} s")
