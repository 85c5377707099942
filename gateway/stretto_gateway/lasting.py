"""How a session over a WebSocket goes on: event by event, until it or the gateway ends."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

from starlette.websockets import WebSocket

from stretto_gateway.api_error import ApiError
from stretto_gateway.gateway import Gateway
from stretto_gateway.realtime.channel import Channel, SessionEnd

DONE, FAILED, RESTART, TRY_AGAIN = 1000, 1011, 1012, 1013  # RFC 6455, section 7.4.1, and its registry
Error = TypeVar("Error", bound=BaseException)


class LastingSession(Protocol):
    """What is done with a session, whatever it is for."""

    async def handle(self, message: str | None) -> None:
        """Do what an event says, or tell what is wrong with it."""
        ...

    async def complete(self) -> None:
        """Until what it is making is made."""
        ...


@asynccontextmanager
async def session_tasks(channel: Channel) -> AsyncIterator[asyncio.TaskGroup]:
    """The tasks of a session, which SessionEnd in the block or in one of them ends, and the socket as it says.

    An ApiError ends it, too, and the client is told of it.
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
    """The first of them, which may be of several tasks."""
    one = errors.exceptions[0]
    return _first(one) if isinstance(one, BaseExceptionGroup) else one


def _end_by(error: ApiError) -> SessionEnd:
    """The end of a session that cannot go on."""
    return SessionEnd(TRY_AGAIN if error.status in (429, 503) else FAILED, error.code or "failed", error)


async def attend(
    gateway: Gateway,
    socket: WebSocket,
    session: LastingSession,
    tasks: asyncio.TaskGroup,
    patience_s: Callable[[], float],
) -> None:
    """Hand events to the session until there are no more for `patience_s`, it has lasted too long, or the gateway ends;
    SessionEnd then."""
    tasks.create_task(_until_draining(gateway, session))
    tasks.create_task(_until_expired(gateway.limits.session_s))
    while True:
        left_s = patience_s()
        try:
            async with asyncio.timeout(left_s):
                message = await socket.receive()
        except TimeoutError:
            raise SessionEnd(DONE, f"nothing came for {left_s:g} s") from None
        if message["type"] == "websocket.disconnect":
            raise SessionEnd
        await session.handle(message.get("text"))


async def _until_draining(gateway: Gateway, session: LastingSession) -> None:
    """End a session with the gateway, once what it is making is made."""
    await gateway.sessions.draining.wait()
    await session.complete()
    raise SessionEnd(RESTART, "the gateway ends")


async def _until_expired(session_s: float) -> None:
    """End a session that has lasted so long."""
    await asyncio.sleep(session_s)
    raise SessionEnd(DONE, f"it lasts {session_s:g} s")
