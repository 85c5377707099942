"""Client events of the realtime API."""

import base64
import binascii
import json
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError

from stretto_gateway.api_error import ApiError, refused, shown
from stretto_gateway.chat_request import MAX_PARTS, MAX_TURNS
from stretto_gateway.given_options import json_bytes
from stretto_gateway.ignored import Body
from stretto_gateway.realtime.settings import ReplyAudio, ReplyOptions, current_shape, merged, validated
from stretto_gateway.speech_request import Text

MAX_METADATA = 16
MAX_VALUES = 8192  # of an event, each of which may take a hundred times the memory of its character
Id = Annotated[Text, Field(min_length=1, max_length=64)]


class ClientEvent(Body):
    """Event from a client. `event_id` is the client's own; an error about the event names it."""

    type: str
    event_id: Annotated[Text, Field(max_length=512)] | None = None
    _ignored: list[ApiError] = PrivateAttr(default_factory=list)

    @property
    def ignored(self) -> list[ApiError]:
        """Fields that have no meaning here, as the errors that a strict gateway answers."""
        return self._ignored

    @classmethod
    def read(cls, record: dict[str, Any], is_strict: bool) -> "ClientEvent":
        """Return the event in `record`, without fields that have no meaning; raise ApiError for a wrong one."""
        ignored: list[ApiError] = []
        known = merged(cls, {}, record, "", ignored)
        if ignored and is_strict:
            raise ignored[0]
        event = validated(cls, known)
        event._ignored = ignored
        return event


class SessionUpdate(ClientEvent):
    """Change of settings; a field that is left out stays as it is."""

    session: dict[str, Any]


class AudioAppend(ClientEvent):
    """pcm16 at 24 kHz, as base64."""

    audio: str


class ContentFields(Body):
    """Text, or a recording in the format of the session's audio."""

    type: Literal["input_text", "input_audio", "output_text", "output_audio", "text"]
    text: Text | None = None
    audio: str | None = None
    transcript: Text | None = None


class ItemFields(Body):
    """Message of a conversation."""

    id: Id | None = None
    type: Literal["message"]
    object: Literal["realtime.item"] | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None
    role: Literal["user", "assistant", "system"]
    content: Annotated[list[ContentFields], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]


class ItemReference(Body):
    """Item of the session's conversation, by its id."""

    type: Literal["item_reference"]
    id: Id


class ItemCreate(ClientEvent):
    """New item after another one: `root` is the beginning, none the end."""

    item: ItemFields
    previous_item_id: Id | None = None


class ItemEvent(ClientEvent):
    """About an item that is there."""

    item_id: Id


class ItemTruncate(ItemEvent):
    """So much of a reply was heard."""

    content_index: Literal[0]
    audio_end_ms: int = Field(ge=0, le=10**9)


def few(metadata: Any) -> Any:
    """`metadata`, cut where there is too much of it: what is wrong would be listed for every value."""
    return dict(islice(metadata.items(), MAX_METADATA + 1)) if isinstance(metadata, dict) else metadata


Metadata = Annotated[
    dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]],
    BeforeValidator(few),
    Field(max_length=MAX_METADATA),
]


def few_options(options: Any) -> Any:
    """`options`, where they are no more JSON than the server takes; ApiError otherwise."""
    json_bytes(options, "response.options")
    return options


class ReplyFields(ReplyOptions):
    """Settings of one reply, instead of the session's. input: answered instead of the conversation."""

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
        """Return the event in `record`, as the base class does, from the beta API's fields too."""
        fields = record.get("response")
        return super().read(
            record | {"response": current_shape(fields)} if isinstance(fields, dict) else record, is_strict
        )


class ResponseCancel(ClientEvent):
    """Gives it up."""

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
}


def read_json(text: str | None) -> dict[str, Any]:
    """The object in a message; ApiError where there is none."""
    if text is None:
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
    """How many values there are in JSON, or a few more: the brackets that open and the commas, outside strings if need
    be."""
    got = sum(map(text.count, "[{,"))
    if got > MAX_VALUES:
        bare = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
        got = sum(map(bare.count, "[{,"))
    return got


def read_event(record: dict[str, Any], is_strict: bool) -> ClientEvent:
    """Return the event in `record`; raise ApiError for a wrong field, and for an unknown one if `is_strict`."""
    kind = record.get("type")
    if not isinstance(kind, str) or kind not in EVENTS:
        raise refused("type", f"one of {', '.join(EVENTS)}", kind)
    return EVENTS[kind].read(record, is_strict)


def event_id(record: dict[str, Any]) -> str | None:
    """The client's name for an event that may be wrong; None where that is wrong, too."""
    try:
        return ClientEvent(type="", event_id=record.get("event_id")).event_id
    except ValidationError:
        return None


def read_pcm(data: str | None, path: str) -> bytes:
    """Samples that came as base64; ApiError where they did not."""
    if data is None:
        raise ApiError(400, f"{path}: missing", path, "missing")
    try:
        pcm = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise refused(path, "base64", data) from None
    if len(pcm) % 2:
        raise refused(path, "whole samples of 16 bits", f"{len(pcm)} bytes")
    return pcm
