"""The connection: who comes in, and for what."""

from contextlib import closing

from fastapi import APIRouter
from starlette.websockets import WebSocket

from stretto_gateway.api_error import ApiError
from stretto_gateway.gateway import Gateway
from stretto_gateway.lasting import attend, session_tasks
from stretto_gateway.realtime.channel import Channel
from stretto_gateway.realtime.session import Session
from stretto_gateway.realtime.settings import Change, RealtimeSettings, Settings, TranscriptionSettings

router = APIRouter()
PROTOCOL = "realtime"  # what a browser's page offers beside its key, and has to be answered
TRANSCRIBERS = ("whisper", "transcribe")  # in the names of OpenAI's models that do nothing else


@router.websocket("/v1/realtime")
async def open_session(socket: WebSocket) -> None:
    """Converse, or write down what is heard, with the model that the query names; `intent=transcription` for the
    latter."""
    gateway: Gateway = socket.app.state.gateway
    query = socket.query_params
    name = query.get("model", "gpt-realtime")
    only_listens = query.get("intent") == "transcription" or any(part in name for part in TRANSCRIBERS)
    settings: Settings = transcribing(name) if only_listens else RealtimeSettings(model=name)
    try:
        settings.check(await gateway.catalogue.model(name))
        with gateway.sessions.place():
            await socket.accept(PROTOCOL if PROTOCOL in socket.scope["subprotocols"] else None)
            await run(gateway, socket, settings, name)
    except ApiError as error:
        await socket.send_denial_response(error.response())


def transcribing(model: str) -> Settings:
    """Return the settings of a session that only transcribes, with the turn detection that `model` has at OpenAI."""
    named = {"audio": {"input": {"transcription": {"model": model}}}}
    return Change(TranscriptionSettings(), named, model).settings


async def run(gateway: Gateway, socket: WebSocket, settings: Settings, model: str) -> None:
    """The session from its first event to its last."""
    channel = Channel(socket, gateway.limits.stall_s)
    async with session_tasks(channel) as tasks:
        with closing(Session(gateway, channel, model, tasks)) as session:
            await session.begin(settings)
            await attend(gateway, socket, session, tasks, lambda: gateway.limits.idle_s)
