"""WebSocket session: the channel to its client, the main loop, and the client's events."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect

from stretto_gateway.answers import ApiError, mismatch, refused, shown
from stretto_gateway.base64_data import read_base64
from stretto_gateway.chat import MAX_PARTS, MAX_TURNS, given
from stretto_gateway.connection import POLICY, EventRate
from stretto_gateway.gateway import Gateway
from stretto_gateway.realtime.conversation import new_id
from stretto_gateway.realtime.settings import (
    Format,
    Only,
    ReplyAudio,
    ReplyOptions,
    Settings,
    current_shape,
    merged,
    validated,
)
from stretto_gateway.realtime.wire_audio import read_recording
from stretto_gateway.speech_request import Body, Text, check_json

LOG = logging.getLogger("stretto_gateway")
# RFC 6455, section 7.4.1, and its registry
DONE = 1000
FAILED = 1011
RESTART = 1012
TRY_AGAIN = 1013
Error = TypeVar("Error", bound=BaseException)
# per second; if there are more, the session ends, because errors cost the gateway more than the client
MAX_ERRORS = 100


class SessionEnd(Exception):
    """End of a session.

    Args:
        code: Close code of the WebSocket; None if the client has disconnected.
        reason: Reason for the client.
        error: Error to send to the client instead of the reason.
    """

    def __init__(self, code: int | None = None, reason: str = "", error: ApiError | None = None):
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.error = error


class Socket(Protocol):
    """Connection to a client: a WebSocket, or what takes its place. The messages are those of ASGI."""

    async def receive(self) -> Message:
        """Return the next message."""
        ...

    async def send_text(self, data: str) -> None:
        """Send a message of text; raise WebSocketDisconnect or RuntimeError if the client has disconnected."""
        ...

    async def send_bytes(self, data: bytes) -> None:
        """Send a message of bytes; raise WebSocketDisconnect or RuntimeError if the client has disconnected."""
        ...

    async def close(self, code: int, reason: str) -> None:
        """Close the connection."""
        ...


class Channel:
    """Ordered stream of events to a client.

    The session ends if the client does not read an event within `stall_s` seconds.
    """

    def __init__(self, socket: Socket, stall_s: float):
        self._socket = socket
        self._stall_s = stall_s
        self._errors = EventRate(asyncio.get_running_loop(), MAX_ERRORS)

    @property
    def num_unplayed(self) -> int:
        """Number of samples at 24 kHz that wait to be played; 0 if the client plays them."""
        return 0

    def check_format(self, param: str, form: Format) -> None:
        """Raise ApiError if the channel carries no audio of a format; `param` is the field with the format."""

    def check_formats(self, settings: Settings) -> None:
        """Raise ApiError if the channel carries no audio of a session's formats."""

    async def clear_output(self, _: Any = None) -> None:
        """Stop playing, by the client's request; raise ApiError if the client itself plays."""
        raise refused(
            "type", "no event of WebRTC calls (over a WebSocket the client plays)", "output_audio_buffer.clear"
        )

    async def send(self, kind: str, **fields: Any) -> None:
        """Send an event; raise SessionEnd if the client has disconnected or does not read."""
        record = {"type": kind, "event_id": new_id("event")} | fields
        await self._taken(self._socket.send_text(json.dumps(record)))

    async def send_bytes(self, data: bytes) -> None:
        """Send part of a file as a binary message.

        Raises:
            SessionEnd: The client has disconnected or does not read.
        """
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
        """Send an error event.

        Args:
            error: The error.
            event_id: The client's id for the event that caused the error.

        Raises:
            SessionEnd: More than MAX_ERRORS errors were sent in a second.
        """
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


MAX_METADATA = 16
MAX_VALUES = 8192  # per event, because a value of one character may need a hundred times its size in memory
Id = Annotated[Text, Field(min_length=1, max_length=64)]


class SocketSession(Protocol):
    """Handler of a session's events."""

    async def handle(self, message: str | bytes | None) -> None:
        """Handle an event; send an error if it is invalid."""
        ...

    async def complete(self) -> None:
        """Wait until the output in progress is complete."""
        ...


@asynccontextmanager
async def session_tasks(channel: Channel) -> AsyncIterator[asyncio.TaskGroup]:
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
    """Pass events to the session until it ends.

    Args:
        gateway: The gateway.
        socket: Connection to the client.
        session: Handler of the events.
        tasks: Tasks of the session.
        patience_s: Function that returns how many seconds to wait for the next event.

    Raises:
        SessionEnd: The client disconnected or was idle too long, the session lasted too long, or the gateway is
            shutting down.
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
        await session.handle(message["bytes"] if message.get("bytes") is not None else message.get("text"))


async def _until_draining(gateway: Gateway, session: SocketSession) -> None:
    """End the session when the gateway shuts down, once the output in progress is complete."""
    await gateway.sessions.draining.wait()
    await session.complete()
    raise SessionEnd(RESTART, "the gateway is shutting down")


async def _until_expired(session_s: float) -> None:
    """End the session after `session_s` seconds."""
    await asyncio.sleep(session_s)
    raise SessionEnd(DONE, f"the session has reached its maximum duration of {session_s:g} s")


class ClientEvent(Body):
    """Event from a client. `event_id` is chosen by the client and repeated in errors about the event."""

    type: str
    event_id: Annotated[Text, Field(max_length=512)] | None = None
    _ignored: list[ApiError] = PrivateAttr(default_factory=list)

    @property
    def ignored(self) -> list[ApiError]:
        """One error for each field that has no effect; a strict gateway raises it."""
        return self._ignored

    @classmethod
    def read(cls, record: dict[str, Any], is_strict: bool) -> "ClientEvent":
        """Return the event in `record`.

        Args:
            record: JSON object of the event.
            is_strict: True to reject fields without effect; False to drop them.

        Raises:
            ApiError: A field is invalid.
        """
        ignored: list[ApiError] = []
        known = merged(cls, {}, record, "", ignored)
        if ignored and is_strict:
            raise ignored[0]
        event = validated(cls, known)
        event._ignored = ignored
        return event


class SessionUpdate(ClientEvent):
    """Change of settings; missing fields are unchanged."""

    session: dict[str, Any]


class AudioAppend(ClientEvent):
    """Next bytes of the audio input in base64. A sample may begin in one event and end in the next."""

    audio: str


class ContentFields(Body):
    """Text, a recording in the format of the session's audio input, or an image as a `data:` URL with base64."""

    type: Literal["input_text", "input_audio", "input_image", "output_text", "output_audio", "text"]
    text: Text | None = None
    audio: str | None = None
    transcript: Text | None = None
    image_url: str | None = None
    detail: Annotated[Any, Only("auto")] = None


class ItemFields(Body):
    """Message of a conversation, as sent by the client."""

    id: Id | None = None
    type: Literal["message"]
    object: Literal["realtime.item"] | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None
    role: Literal["user", "assistant", "system"]
    content: Annotated[list[ContentFields], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]


class ItemReference(Body):
    """Id of an item in the session's conversation."""

    type: Literal["item_reference"]
    id: Id


class ItemCreate(ClientEvent):
    """New item, to be inserted after the item `previous_item_id`.

    If that id is `root`, the item is inserted at the beginning; if it is missing, at the end.
    """

    item: ItemFields
    previous_item_id: Id | None = None


class ItemEvent(ClientEvent):
    """Event about an existing item."""

    item_id: Id


class ItemTruncate(ItemEvent):
    """Client event `conversation.item.truncate`: the position at which the client stopped playback."""

    content_index: Literal[0]
    audio_end_ms: int = Field(ge=0, le=10**9)


def first_entries(metadata: Any) -> Any:
    """Return `metadata` cut to MAX_METADATA + 1 entries, because validation would report every invalid value."""
    return dict(islice(metadata.items(), MAX_METADATA + 1)) if isinstance(metadata, dict) else metadata


Metadata = Annotated[
    dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]],
    BeforeValidator(first_entries),
    Field(max_length=MAX_METADATA),
]


def few_options(options: Any) -> Any:
    """Return `options`; raise ApiError if they exceed the server's JSON limits."""
    check_json(options, "response.options")
    return options


class ReplyFields(ReplyOptions):
    """Settings of one reply, which override the settings of the session.

    `input` contains items to answer instead of the conversation.
    """

    audio: ReplyAudio = Field(default_factory=ReplyAudio)
    conversation: Literal["auto", "none"] | None = None
    input: Annotated[list[ItemFields | ItemReference], Field(max_length=MAX_TURNS, fail_fast=True)] | None = None
    options: Annotated[dict[str, Any] | None, BeforeValidator(few_options)] = Field(
        default=None, description="as those of speech, for this reply"
    )
    metadata: Metadata | None = None


class ResponseCreate(ClientEvent):
    """Request for a reply."""

    response: ReplyFields = Field(default_factory=ReplyFields)

    @classmethod
    def read(cls, record: dict[str, Any], is_strict: bool) -> ClientEvent:
        """Return the event in `record` as the base class does, but also accept fields of the beta API."""
        fields = record.get("response")
        return super().read(
            record | {"response": current_shape(fields)} if isinstance(fields, dict) else record, is_strict
        )


class ResponseCancel(ClientEvent):
    """Cancellation of the reply in progress."""

    response_id: Id | None = None


EVENTS: dict[str, type[ClientEvent]] = {
    "session.update": SessionUpdate,
    "input_audio_buffer.append": AudioAppend,
    "input_audio_buffer.commit": ClientEvent,
    "input_audio_buffer.clear": ClientEvent,
    "conversation.item.create": ItemCreate,
    "conversation.item.truncate": ItemTruncate,
    "conversation.item.delete": ItemEvent,
    "conversation.item.retrieve": ItemEvent,
    "response.create": ResponseCreate,
    "response.cancel": ResponseCancel,
    "output_audio_buffer.clear": ClientEvent,
}


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


def read_event(record: dict[str, Any], is_strict: bool) -> ClientEvent:
    """Return the event in `record`.

    Args:
        record: JSON object of the event.
        is_strict: True to reject unknown fields and fields without effect.

    Raises:
        ApiError: A field is invalid.
    """
    kind = record.get("type")
    if not isinstance(kind, str) or kind not in EVENTS:
        raise refused("type", f"one of {', '.join(EVENTS)}", kind)
    return EVENTS[kind].read(record, is_strict)


def event_id(record: dict[str, Any]) -> str | None:
    """Return the client's id for an event that may be invalid; None if the id itself is invalid."""
    try:
        return ClientEvent(type="", event_id=record.get("event_id")).event_id
    except ValidationError:
        return None


def read_pcm(data: str | None, path: str, form: Format) -> bytes:
    """Decode a whole recording to pcm16 at 24 kHz.

    Args:
        data: The recording in base64.
        path: Path of the field.
        form: Format of the recording.

    Raises:
        ApiError: The recording is missing or invalid.
    """
    recording = read_base64(path, given(data, path))
    if form.law is None and len(recording) % 2:
        raise mismatch(path, "an even number of bytes, because samples have 16 bits", f"{len(recording)} bytes")
    return read_recording(form, recording)
