"""The connection: who comes in, how long a session goes on, and how it ends."""

import asyncio
from typing import Protocol

from fastapi import APIRouter
from starlette.websockets import WebSocket

from stretto_gateway.api_error import ApiError
from stretto_gateway.gateway import Gateway
from stretto_gateway.realtime.channel import Channel, SessionEnd
from stretto_gateway.realtime.session import Session
from stretto_gateway.realtime.settings import RealtimeSettings, Settings, TranscriptionSettings

router = APIRouter()
PROTOCOL = "realtime"  # what a browser's page offers beside its key, and has to be answered
TRANSCRIBERS = ("whisper", "transcribe")  # in the names of OpenAI's models that do nothing else
DONE, RESTART = 1000, 1012  # RFC 6455, section 7.4.1, and its registry


class Completes(Protocol):
    """A session, as what ends one knows it."""

    async def complete(self) -> None:
        """Until what it is making is made."""
        ...


@router.websocket("/v1/realtime")
async def open_session(socket: WebSocket) -> None:
    """Converse, or write down what is heard, with the model that the query names; `intent=transcription` for the
    latter."""
    gateway: Gateway = socket.app.state.gateway
    query = socket.query_params
    name = query.get("model", "gpt-realtime")
    only_listens = query.get("intent") == "transcription" or any(part in name for part in TRANSCRIBERS)
    settings: Settings = TranscriptionSettings() if only_listens else RealtimeSettings(model=name)
    try:
        settings.check(await gateway.catalogue.model(name))
        with gateway.sessions.place():
            await socket.accept(PROTOCOL if PROTOCOL in socket.scope["subprotocols"] else None)
            await run(gateway, socket, settings, name)
    except ApiError as error:
        await socket.send_denial_response(error.response())


async def run(gateway: Gateway, socket: WebSocket, settings: Settings, model: str) -> None:
    """The session from its first event to its last."""
    channel = Channel(socket, gateway.limits.stall_s)
    end = SessionEnd()
    try:
        async with asyncio.TaskGroup() as tasks:
            session = Session(gateway, channel, model, tasks)
            try:
                await session.begin(settings)
                tasks.create_task(until_draining(gateway, session))
                tasks.create_task(until_expired(gateway.limits.session_s))
                await listen(gateway, socket, session)
            finally:
                session.close()
    except* SessionEnd as ends:
        end = first(ends)
    if end.code is not None:
        await channel.close(end)


def first(ends: BaseExceptionGroup[SessionEnd]) -> SessionEnd:
    """The first of the ends, which may be of several tasks."""
    one = ends.exceptions[0]
    return first(one) if isinstance(one, BaseExceptionGroup) else one


async def listen(gateway: Gateway, socket: WebSocket, session: Session) -> None:
    """Hand events to the session until there are no more; SessionEnd then."""
    idle_s = gateway.limits.idle_s
    while True:
        try:
            async with asyncio.timeout(idle_s):
                message = await socket.receive()
        except TimeoutError:
            raise SessionEnd(DONE, f"nothing came for {idle_s:g} s") from None
        if message["type"] == "websocket.disconnect":
            raise SessionEnd
        await session.handle(message.get("text"))


async def until_draining(gateway: Gateway, session: Completes) -> None:
    """End a session with the gateway, once what it is making is made."""
    await gateway.sessions.draining.wait()
    await session.complete()
    raise SessionEnd(RESTART, "the gateway ends")


async def until_expired(session_s: float) -> None:
    """End a session that has lasted so long."""
    await asyncio.sleep(session_s)
    raise SessionEnd(DONE, f"it lasts {session_s:g} s")
