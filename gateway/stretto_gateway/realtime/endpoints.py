"""Endpoints of realtime sessions: `WS /v1/realtime`, and short-lived keys for it."""

import asyncio
from collections.abc import Callable
from contextlib import closing

from fastapi import APIRouter
from starlette.requests import HTTPConnection, Request
from starlette.websockets import WebSocket

from stretto_gateway.admission import CALLER
from stretto_gateway.answers import ApiError, ClientSecret, mismatch, shown
from stretto_gateway.catalogue import CallersVoices, answers_turns, is_full_duplex, transcribes
from stretto_gateway.fields import Ignored
from stretto_gateway.gateway import Gateway
from stretto_gateway.model_server import Can
from stretto_gateway.realtime.channel import Channel
from stretto_gateway.realtime.client_secrets import SecretRequest
from stretto_gateway.realtime.duplex import DuplexSession, is_duplex
from stretto_gateway.realtime.session import RealtimeSession
from stretto_gateway.realtime.settings import (
    RealtimeSettings,
    Settings,
    SettingsChange,
    TranscriptionSettings,
    restrict_to_model,
    session_record,
)
from stretto_gateway.realtime.state import RealtimeState
from stretto_gateway.socket_session import Socket, SocketSession, attend, new_id, session_tasks
from stretto_gateway.voice_store import EVERYBODY

router = APIRouter()
PROTOCOL = "realtime"  # subprotocol that browser pages offer in addition to their key; the server must accept it
TRANSCRIBERS = ("whisper", "transcribe")  # parts of the names of OpenAI models that only transcribe


@router.websocket("/v1/realtime")
async def open_session(socket: WebSocket) -> None:
    """Open a conversation with the model in the query, or a transcription session if `intent=transcription`.

    The settings of a client secret override both.
    """
    first: Gateway = socket.app.state.gateway
    name, settings = first_settings(socket)
    try:
        if call_id := socket.query_params.get("call_id"):
            expected = "no call: its events are on its data channel, and a WebSocket cannot join it"
            raise mismatch("call_id", expected, shown(call_id))
        gateway = await first.for_model(model_of(settings) or name, *abilities(settings))
        await settings.check(await gateway.catalogue.model(name), CallersVoices(gateway.voices, socket.state.owner))
        with gateway.sessions.slot():
            await socket.accept(PROTOCOL if PROTOCOL in socket.scope["subprotocols"] else None)
            channel = Channel(socket, gateway.limits.stall_s)
            await run(gateway, socket, channel, settings, name, getattr(socket.state, "owner", EVERYBODY))
    except ApiError as error:
        await socket.send_denial_response(error.response())


@router.post("/v1/realtime/client_secrets")
async def create_client_secret(body: SecretRequest, request: Request) -> ClientSecret:
    """Create a short-lived key that can only open `/v1/realtime`, and set the settings of its sessions."""
    first: Gateway = request.app.state.gateway
    unknown = Ignored(body, first.strict)
    model = "gpt-realtime"
    change = SettingsChange(RealtimeSettings(model=model), body.session, model)
    gateway = await settled(first, change, model, request.state.owner)
    secrets = gateway.of_route(RealtimeState).secrets
    value, expires_at = secrets.add(CALLER.get(), change.settings, body.expires_after.seconds)
    record = session_record(change.settings, new_id("sess"), expires_at)
    answer: ClientSecret = {"value": value, "expires_at": expires_at, "session": record}
    if names := [*unknown.names, *(error.param or "" for error in change.ignored)]:
        answer |= {"stretto_ignored": names}
    return answer


async def settled(first: Gateway, change: SettingsChange, model: str, owner: str) -> Gateway:
    """Check the settings of a new session, and return the gateway for the server of its model.

    Fields of `change` that the model does not support are undone. ApiError is raised for invalid fields and, in a
    strict gateway, for unsupported ones. `model` is the name of the model if the settings have none.
    """
    gateway = await first.for_model(model_of(change.settings) or model, *abilities(change.settings))
    voices = CallersVoices(gateway.voices, owner)
    await restrict_to_model(change, gateway.catalogue, gateway.listener.catalogue, model, voices)
    if gateway.strict:
        change.expect_honoured()
    for error in change.errors:
        raise error
    return gateway


def model_of(settings: Settings) -> str:
    """Return the model name in a session's settings; empty if there is none."""
    if isinstance(settings, RealtimeSettings):
        return settings.model
    transcription = settings.audio.input.transcription
    return (transcription.model if transcription is not None else None) or ""


def abilities(settings: Settings) -> tuple[Can, ...]:
    """Return conditions for a model; one that meets any of them can serve a session with these settings."""
    return (answers_turns, is_full_duplex) if isinstance(settings, RealtimeSettings) else (transcribes,)


def transcribing(model: str) -> Settings:
    """Return the settings of a session that only transcribes, with OpenAI's turn detection for `model`."""
    named = {"audio": {"input": {"transcription": {"model": model}}}}
    return SettingsChange(TranscriptionSettings(), named, model).settings


def first_settings(connection: HTTPConnection) -> tuple[str, Settings]:
    """Return the name of the model and the settings with which a session begins, from its secret or its query."""
    query = connection.query_params
    name = query.get("model", "gpt-realtime")
    secret = connection.state.secret
    if secret is not None:
        settings: Settings = secret.settings
        return settings.model if isinstance(settings, RealtimeSettings) else name, settings
    only_listens = query.get("intent") == "transcription" or any(word in name for word in TRANSCRIBERS)
    return name, transcribing(name) if only_listens else RealtimeSettings(model=name)


async def run(
    gateway: Gateway,
    socket: Socket,
    channel: Channel,
    settings: Settings,
    model: str,
    owner: str,
    handler: Callable[[RealtimeSession, asyncio.TaskGroup], SocketSession] = lambda session, _: session,
) -> None:
    """Run the session until it ends; `handler` returns the object that handles the client's messages."""
    voices = CallersVoices(gateway.voices, owner)
    async with session_tasks(channel) as tasks:
        session_class = DuplexSession if is_duplex(await gateway.catalogue.profile(), settings) else RealtimeSession
        with closing(session_class(gateway, channel, model, tasks, voices)) as session:
            await session.begin(settings)
            await attend(gateway, socket, handler(session, tasks), tasks, lambda: gateway.limits.idle_s)
