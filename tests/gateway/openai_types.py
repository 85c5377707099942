"""Every response of a gateway under test, compared with the types of OpenAI's SDK in strict mode."""

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from functools import cache
from typing import Any, get_args

from openai.types import ErrorObject, Model
from openai.types.audio import (
    Transcription,
    TranscriptionDiarized,
    TranscriptionStreamEvent,
    TranscriptionVerbose,
    Translation,
    TranslationVerbose,
    Voice,
)
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.realtime import RealtimeServerEvent
from openai.types.realtime.client_secret_create_response import ClientSecretCreateResponse
from pydantic import BaseModel, TypeAdapter, ValidationError

from stretto_gateway.answers import ApiError
from stretto_gateway.response_headers import ResponseHeader
from stretto_gateway.routes import installed_routes

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Failure(BaseModel):
    """Error response; the SDK reads `error` of its body."""

    error: ErrorObject


class Models(BaseModel):
    """List of models; the SDK's own class is a page of its client."""

    object: str
    data: list[Model]


# Types of responses with status 200, by method and path. The gateway's other paths are its own.
TYPES: dict[str, Any] = {
    "GET /v1/models": Models,
    "GET /v1/models/.+": Model,
    "POST /v1/audio/transcriptions": Transcription,
    "POST /v1/audio/translations": Translation,
    "POST /v1/audio/voices": Voice,
    "POST /v1/chat/completions": ChatCompletion,
    "POST /v1/realtime/client_secrets": ClientSecretCreateResponse,
}
VERBOSE = {Transcription: TranscriptionVerbose, Translation: TranslationVerbose}
EVENTS: dict[str, Any] = {
    "POST /v1/audio/transcriptions": TranscriptionStreamEvent,
    "POST /v1/chat/completions": ChatCompletionChunk,
}
SESSIONS = ("/v1/realtime",)
SERVER_EVENTS = {
    get_args(each.model_fields["type"].annotation)[0]: each for each in get_args(get_args(RealtimeServerEvent)[0])
}


adapter = cache(TypeAdapter)  # of the SDK's classes, which defer it, every new one builds the schema again


def mismatch(kind: Any, text: str | bytes) -> str:
    """Return why a JSON text does not have a type; empty if it has."""
    if kind in VERBOSE and "duration" in json.loads(text):
        kind = VERBOSE[kind] if "usage" not in json.loads(text) else TranscriptionDiarized
    try:
        adapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        return f"{getattr(kind, '__name__', kind)}: {error}"
    return ""


def has_openai_errors(scope: Message) -> bool:
    """Return True unless a request is for a route with errors in the form of another API."""
    error = ApiError(400, "expected one thing, got another")
    return all(route.error_response(scope, error) is None for route in installed_routes())


# headers that pages of other origins may read without permission, or need not read
UNREAD = frozenset("allow cache-control connection content-length content-type vary x-accel-buffering".split())


class CheckedResponses:
    """ASGI middleware that records each response which a strictly typed client of OpenAI's could not read.

    Attributes:
        app: The gateway.
        failures: Receives a description of each such response.
    """

    def __init__(self, app: Any, failures: list[str]) -> None:
        self.app = app
        self.failures = failures

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, and compare the response."""
        if scope["type"] == "http" and has_openai_errors(scope):
            await self.app(scope, receive, self._http(f"{scope['method']} {scope['path'].rstrip('/')}", send))
        elif scope["type"] == "websocket" and scope["path"] in SESSIONS:
            await self.app(scope, receive, self._session(send))
        else:
            await self.app(scope, receive, send)

    def _http(self, what: str, send: Send) -> Send:
        head: Message = {}
        body = bytearray()

        async def check(message: Message) -> None:
            if message["type"] == "http.response.start":
                head.update(message)
                self._check_names(what, {name.decode() for name, _ in message.get("headers", ())})
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                if not message.get("more_body"):
                    self._compare(what, head["status"], dict(head.get("headers", ())), bytes(body))
            await send(message)

        return check

    def _check_names(self, what: str, names: set[str]) -> None:
        """Record headers of the API that web pages of other origins cannot read."""
        others = {name for name in names - UNREAD - set(ResponseHeader) if not name.startswith("access-control-")}
        if " /v1/" in what and others:
            self.failures.append(f"{what}: expected each header as a ResponseHeader, got {sorted(others)}")

    def _compare(self, what: str, status: int, headers: dict[bytes, bytes], body: bytes) -> None:
        media_type = headers.get(b"content-type", b"").partition(b";")[0]
        if status >= 400 and media_type == b"application/json" and " /v1/" in what:
            self._record(what, Failure, body)
        elif status == 200 and media_type == b"application/json":
            for path, kind in TYPES.items():
                if re.fullmatch(path, what):
                    self._record(what, kind, body)
        elif status == 200 and media_type == b"text/event-stream" and what in EVENTS:
            for line in body.splitlines():
                data = line.removeprefix(b"data: ")
                if data != line and data != b"[DONE]":
                    kind = Failure if b'"error"' in data[:12] else EVENTS[what]
                    self._record(what, kind, data)

    def _session(self, send: Send) -> Send:
        async def check(message: Message) -> None:
            if message["type"] == "websocket.send" and message.get("text"):
                event = json.loads(message["text"])
                kind = SERVER_EVENTS.get(event.get("type"))
                if kind is None:
                    self.failures.append(f"no event of OpenAI's: {message['text'][:500]}")
                else:
                    self._record("session", kind, message["text"])
            await send(message)

        return check

    def _record(self, what: str, kind: Any, text: str | bytes) -> None:
        if reason := mismatch(kind, text):
            self.failures.append(f"{what}: {reason}")
