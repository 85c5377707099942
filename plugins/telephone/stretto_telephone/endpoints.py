"""Endpoint of telephone calls: `WS /v1/twilio`, Twilio's media streams."""

import asyncio
import base64
import hashlib
import hmac
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, cast

from fastapi import APIRouter
from starlette.websockets import WebSocket

from stretto_client import ModelProfile
from stretto_contract.limits import host_of
from stretto_gateway.admission import CALLER, EventPace
from stretto_gateway.answers import ApiError, mismatch, refused
from stretto_gateway.catalogue import CallersVoices, converses, speaks, transcribes
from stretto_gateway.fields import validated
from stretto_gateway.gateway import Gateway
from stretto_gateway.guard import Keys
from stretto_gateway.realtime.client_secrets import PREFIX
from stretto_gateway.realtime.duplex import DuplexSession, is_duplex
from stretto_gateway.realtime.session import RealtimeSession
from stretto_gateway.realtime.settings import (
    RealtimeSettings,
    Settings,
    SettingsChange,
    TranscriptionSettings,
    restrict_to_model,
)
from stretto_gateway.realtime.state import RealtimeState
from stretto_gateway.routes import RouteSettings
from stretto_gateway.socket_session import attend, next_message, session_tasks
from stretto_gateway.speech_request import SpeechFields
from stretto_telephone.call import TelephoneCall
from stretto_telephone.channel import CallChannel
from stretto_telephone.messages import PHONE, Start, read_message
from stretto_telephone.webhook import Webhook
from stretto_telephone.webhook_session import WebhookSession

router = APIRouter()
START_S = 10.0  # time within which the start message must arrive, because the caller may be unknown until then
OWN = (
    "key",
    "mode",
    "model",
    "voice",
    "speed",
    "instructions",
    "language",
    "eagerness",
)  # `<Parameter>` elements with a meaning
MODES = ("conversation", "transcription")
UNKNOWN_KEY = "no valid key: expected the header Authorization: Bearer KEY, Twilio's signature, or the parameter key"


@dataclass(frozen=True)
class TelephoneOptions(RouteSettings):
    """Options of telephone calls.

    Attributes:
        call_webhook: Address that receives the events of calls, and answers with text; empty for none.
        twilio_token: Twilio's auth token, which signs its requests; empty to accept other credentials only.
    """

    call_webhook: str = field(default="", repr=False)
    twilio_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class CallAccess:
    """Result of the authentication of a call. `settings` are those of the client secret, if the caller has sent one."""

    owner: str
    settings: Settings | None = None


@router.websocket("/v1/twilio")
async def open_call(socket: WebSocket) -> None:
    """Hold a telephone call over Twilio's media streams."""
    gateway: Gateway = socket.app.state.gateway
    channel = CallChannel(socket, gateway.limits.stall_s)
    begun: tuple[Start, CallAccess] | None = None
    try:
        is_known = has_access(gateway, socket)
        if not is_known and socket.client is not None:
            CALLER.set(host_of(socket.client.host))  # clients without a key must not use up the sessions of others
        with gateway.sessions.slot(is_known):
            await socket.accept()
            async with session_tasks(channel):
                start = await read_start(gateway.sessions.pace, socket)
                begun = start, authenticated(gateway, socket, start, is_known)
    except ApiError as error:
        await socket.send_denial_response(error.response())
    if begun is not None:
        await run(gateway, socket, channel, *begun)


def has_access(gateway: Gateway, socket: WebSocket) -> bool:
    """Return True if the handshake authenticates the caller, False if the start message must do so.

    Raises:
        ApiError: The gateway has a Twilio token, and the handshake is neither signed with it nor has a key.
    """
    keys: Keys = socket.state.keys
    has_key = bool(keys) and socket.state.has_key
    token = gateway.config.of_route(TelephoneOptions).twilio_token
    if has_key or not token:
        return has_key or not keys
    if not is_signed(token, socket):
        expected = "the signature of this URL with the gateway's token"
        raise ApiError(403, f"X-Twilio-Signature: expected {expected}, got another one", code="invalid_signature")
    return True


def is_signed(token: str, socket: WebSocket) -> bool:
    """Return True if a handshake has Twilio's signature: HMAC-SHA1 of its URL with the account's auth token.

    Twilio signs the URL in the TwiML, which is that of the proxy that ends TLS. It may omit the port.
    """
    signed = socket.headers.get("x-twilio-signature", "")
    host = socket.headers.get("host", "")
    path = socket.url.path
    query = f"?{socket.url.query}" if socket.url.query else ""
    hosts = {host, host.rpartition(":")[0] or host}
    urls = [f"{scheme}://{name}{path}{query}" for scheme in ("wss", "ws") for name in sorted(hosts)]
    signatures = [base64.b64encode(hmac.digest(token.encode(), url.encode(), hashlib.sha1)) for url in urls]
    return any(hmac.compare_digest(signed.encode("latin-1"), signature) for signature in signatures)


async def run(gateway: Gateway, socket: WebSocket, channel: CallChannel, start: Start, access: CallAccess) -> None:
    channel.stream_sid = start.stream_sid
    if socket.state.keys:
        CALLER.set(access.owner)
    async with session_tasks(channel) as tasks:
        with gateway.sessions.slot():
            session, settings = await make_session(gateway, channel, tasks, start, access)
            with closing(TelephoneCall(session, channel, gateway.limits.stall_s)) as call:
                await session.begin(settings)
                await attend(gateway, socket, call, tasks, lambda: gateway.limits.stall_s)


async def read_start(pace: EventPace, socket: WebSocket) -> Start:
    """Return the start message; raise ApiError if another message comes first, or none arrives in START_S."""
    try:
        async with asyncio.timeout(START_S):
            event = "connected"
            content = cast(Any, None)
            while event == "connected":
                message = await next_message(socket)
                await pace.wait(message)
                event, content = read_message(message)
    except TimeoutError:
        raise ApiError(408, f"event: expected start within {START_S:g} s", "event", "timeout") from None
    if event != "start":
        raise mismatch("event", "start as the first message with content", event)
    start: Start = content.start
    return start


def authenticated(gateway: Gateway, socket: WebSocket, start: Start, is_known: bool) -> CallAccess:
    """Return the access that a call has; raise ApiError if its parameter `key` is missing or invalid."""
    keys: Keys = socket.state.keys
    key = start.custom_parameters.get("key", "")
    if key.startswith(PREFIX) and (secret := gateway.of_route(RealtimeState).secrets.find(key)) is not None:
        return CallAccess(keys.owner(f"Bearer {key}", secret), secret.settings)
    if key and keys and keys.admit(f"Bearer {key}"):
        return CallAccess(keys.owner(f"Bearer {key}"))
    if not is_known:
        raise ApiError(401, UNKNOWN_KEY, "start.customParameters.key", "invalid_api_key")
    return CallAccess(socket.state.owner)


async def make_session(
    first: Gateway, channel: CallChannel, tasks: asyncio.TaskGroup, start: Start, access: CallAccess
) -> tuple[RealtimeSession, Settings]:
    """Return a call's session and settings; raise ApiError if a parameter is invalid, or nothing can hold the call.

    A full-duplex model and a model that converses hold the call themselves. For other models the webhook answers. The
    models that transcribe and speak may then have different servers. `first` is the gateway, for any server.
    """
    parameters = {name: value for name, value in start.custom_parameters.items() if name in OWN and value.strip()}
    mode = parameters.get("mode", MODES[0])
    name = parameters.get("model", "")
    if mode not in MODES:
        raise refused("mode", f"one of {', '.join(MODES)}", mode)
    wanted = name or (access.settings.model if isinstance(access.settings, RealtimeSettings) else "")
    gateway = await first.for_model(wanted, *((holds_calls, speaks) if mode == MODES[0] else (transcribes,)))
    profile = await gateway.catalogue.model(name)
    if mode == MODES[0] and holds_calls(profile):
        voices = CallersVoices(gateway.voices, access.owner)
        settings = await realtime_settings(gateway, parameters, name, access, voices)
        session_class = DuplexSession if is_duplex(profile, settings) else RealtimeSession
        return session_class(gateway, channel, name, tasks, voices), settings
    call_webhook = gateway.config.of_route(TelephoneOptions).call_webhook
    if not call_webhook:
        what = f"--call-webhook URL at the start of the gateway, because {profile.family!r} needs it for {mode}"
        raise ApiError(400, f"call: expected {what}", "call", "unsupported")
    listener = gateway.listener if mode == MODES[0] else gateway
    heard = heard_as(parameters) | {"transcription": {} if transcribes(await listener.catalogue.profile()) else None}
    listens = validated(TranscriptionSettings, {"audio": {"input": heard}})
    fields = None
    if mode == MODES[0]:
        names = ("voice", "speed", "language")
        spoken: dict[str, Any] = {parameter: parameters[parameter] for parameter in names if parameter in parameters}
        fields = validated(SpeechFields, {"model": name, "response_format": "mulaw"} | spoken, "start.customParameters")
    others = {parameter: value for parameter, value in start.custom_parameters.items() if parameter not in OWN}
    call = {"call_sid": start.call_sid, "stream_sid": start.stream_sid, "parameters": others}
    webhook = Webhook(call_webhook, gateway.limits, call)
    return WebhookSession(listener, gateway, channel, tasks, webhook, fields, access.owner), listens


def holds_calls(profile: ModelProfile) -> bool:
    """Return True if the model answers speech with speech, turn by turn or in full duplex."""
    return is_duplex(profile, RealtimeSettings(model="")) or any(
        converses(task) and task.speaks and set(task.needs) <= {"audio"} <= {*task.needs, *task.also}
        for task in profile.tasks
    )


def heard_as(parameters: dict[str, str]) -> dict[str, Any]:
    """Return the settings of the caller's audio. The parameter `eagerness` selects `semantic_vad`."""
    named = {"type": "semantic_vad", "eagerness": parameters.get("eagerness")}
    return {"format": PHONE.model_dump()} | ({"turn_detection": named} if "eagerness" in parameters else {})


async def realtime_settings(
    gateway: Gateway, parameters: dict[str, str], model: str, access: CallAccess, voices: CallersVoices
) -> Settings:
    """Return a conversation's settings from parameters and client secret; raise ApiError if one is invalid."""
    output = {name: parameters[name] for name in ("voice", "speed") if name in parameters}
    update: dict[str, Any] = {"type": "realtime", "audio": {"output": {"format": PHONE.model_dump()} | output}}
    update["audio"]["input"] = heard_as(parameters)
    if "instructions" in parameters:
        update["instructions"] = parameters["instructions"]
    first = access.settings if isinstance(access.settings, RealtimeSettings) else RealtimeSettings(model=model)
    change = SettingsChange(first, update, model)
    await restrict_to_model(change, gateway.catalogue, gateway.listener.catalogue, model, voices)
    for error in change.errors:
        raise error
    return change.settings
