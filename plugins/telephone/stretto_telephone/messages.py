"""Messages of Twilio's media streams, as published in its documentation."""

from typing import Annotated, Any, Literal

from pydantic import Field

from stretto_gateway import g711
from stretto_gateway.answers import mismatch, refused
from stretto_gateway.base64_data import read_base64
from stretto_gateway.fields import Body, Text, validated
from stretto_gateway.realtime.settings import Format
from stretto_gateway.socket_session import read_json

PHONE = Format(type="audio/pcmu")
MAX_MEDIA_BYTES = g711.RATE  # maximum audio in a message: one second, fifty times what Twilio sends
MAX_PARAMETERS = 32
MAX_NAME_CHARS = 100
MAX_VALUE_CHARS = 10_000
Id = Annotated[Text, Field(min_length=1, max_length=100)]
Number = Annotated[int, Field(ge=0, le=10**12)]  # Twilio sends numbers as text
Digit = Annotated[str, Field(pattern=r"^[0-9A-D*#]$")]


class MediaFormat(Body):
    """Audio format of a stream, the only format that Twilio uses."""

    encoding: Literal["audio/x-mulaw"]
    sample_rate: Literal[8000] = Field(alias="sampleRate")
    channels: Literal[1]


class Start(Body):
    """Description of a call. `custom_parameters`: the `<Parameter>` elements in the TwiML."""

    stream_sid: Id = Field(alias="streamSid")
    call_sid: Id = Field(default="", alias="callSid")
    media_format: MediaFormat = Field(alias="mediaFormat")
    custom_parameters: dict[
        Annotated[Text, Field(max_length=MAX_NAME_CHARS)], Annotated[Text, Field(max_length=MAX_VALUE_CHARS)]
    ] = Field(default={}, alias="customParameters", max_length=MAX_PARAMETERS)


class StartMessage(Body):
    """First message with content."""

    start: Start


class Media(Body):
    """Audio. `chunk` counts the messages of the track from 1."""

    track: Literal["inbound", "outbound"] = "inbound"
    chunk: Number = 0
    payload: str


class MediaMessage(Body):
    """Message with the next audio of the caller's (`inbound`) or our (`outbound`) track."""

    media: Media

    def audio(self) -> bytes:
        """Return the G.711 bytes; raise ApiError if they are not base64 or too many."""
        data = read_base64("media.payload", self.media.payload)
        if len(data) > MAX_MEDIA_BYTES:
            raise mismatch("media.payload", f"at most {MAX_MEDIA_BYTES} bytes", f"{len(data)} bytes")
        return data


class Mark(Body):
    """Name of a mark."""

    name: Annotated[Text, Field(max_length=MAX_NAME_CHARS)]


class MarkMessage(Body):
    """Notice that the audio before a mark has been played, or cleared."""

    mark: Mark


class Dtmf(Body):
    """Pressed key."""

    digit: Digit


class DtmfMessage(Body):
    """Key that the caller has pressed."""

    dtmf: Dtmf


KINDS: dict[str, type[Body] | None] = {
    "connected": None,
    "start": StartMessage,
    "media": MediaMessage,
    "mark": MarkMessage,
    "dtmf": DtmfMessage,
    "stop": None,
}


def read_message(text: str | bytes | None) -> tuple[str, Any]:
    """Return a message's kind and content, None for kinds without any; raise ApiError if it is invalid."""
    record = read_json(text)
    event = record.get("event")
    if not isinstance(event, str) or event not in KINDS:
        raise refused("event", f"one of {', '.join(KINDS)}", event)
    model = KINDS[event]
    if model is None:
        return event, None
    if event == "start" and isinstance(record.get("start"), dict):
        record = record | {"start": {"streamSid": record.get("streamSid")} | record["start"]}
    return event, validated(model, record)
