"""Events from the client of a realtime session."""

from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError

from stretto_gateway.answers import ApiError, mismatch, refused
from stretto_gateway.base64_data import read_base64
from stretto_gateway.chat import MAX_PARTS, MAX_TURNS, given
from stretto_gateway.fields import Body, Text, check_json, validated
from stretto_gateway.realtime.settings import Format, Only, ReplyAudio, ReplyOptions, current_shape, merged
from stretto_gateway.realtime.wire_audio import read_recording

MAX_METADATA = 16
Id = Annotated[Text, Field(min_length=1, max_length=64)]


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
        """Return the event in `record`; raise ApiError for an invalid field or, if `is_strict`, one without effect."""
        ignored: list[ApiError] = []
        fields = merged(cls, {}, record, "", ignored)
        if ignored and is_strict:
            raise ignored[0]
        event = validated(cls, fields)
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


def read_event(record: dict[str, Any], is_strict: bool) -> ClientEvent:
    """Return the event in `record`; raise ApiError for an unknown type, and as `ClientEvent.read` does."""
    event_type = record.get("type")
    if not isinstance(event_type, str) or event_type not in EVENTS:
        raise refused("type", f"one of {', '.join(EVENTS)}", event_type)
    return EVENTS[event_type].read(record, is_strict)


def event_id(record: dict[str, Any]) -> str | None:
    """Return the client's id for an event that may be invalid; None if the id itself is invalid."""
    try:
        return ClientEvent(type="", event_id=record.get("event_id")).event_id
    except ValidationError:
        return None


def read_pcm(data: str | None, path: str, form: Format) -> bytes:
    """Decode a whole recording in base64 to pcm16 at 24 kHz; raise ApiError if it is missing or invalid."""
    recording = read_base64(path, given(data, path))
    if form.law is None and len(recording) % 2:
        raise mismatch(path, "an even number of bytes, because samples have 16 bits", f"{len(recording)} bytes")
    return read_recording(form, recording)
