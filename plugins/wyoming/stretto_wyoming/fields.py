"""Fields of the events that clients send."""

from typing import Any, Literal

from pydantic import Field

from stretto_gateway.fields import Body, Text


class Signal(Body):
    """Event whose fields have no effect."""

    timestamp: Any = None


class Ping(Body):
    """Request for a `pong` with the same text."""

    text: Text | None = None


class SelectProgram(Body):
    """Choice of the model for this connection, by the name of its program."""

    name: Text


class VoiceChoice(Body):
    """Voice: by its name and speaker, or by a language."""

    name: Text | None = None
    language: Text | None = None
    speaker: Text | None = None


class SynthesizeStart(Body):
    """Voice of the text that follows."""

    voice: VoiceChoice = VoiceChoice()
    text_format: Literal["text", "ssml"] | None = None
    context: Any = None


class Synthesize(SynthesizeStart):
    """Complete text to speak."""

    text: Text


class SynthesizeChunk(Body):
    """Next piece of the text to speak."""

    text: Text


class Transcribe(Body):
    """Choice of the model for the next recording. Other fields have no effect, because the model decides."""

    name: Text | None = None
    language: Text | None = None
    context: Any = None
    vad_sensitivity: Any = None
    transcript_names: Any = None
    transcript_terms: Any = None


class AudioFormat(Body):
    """Format of samples: rate in Hz, and width of a sample in bytes. The server's limits are narrower."""

    rate: int = Field(ge=1, le=1_000_000)
    width: int = Field(ge=1, le=4)
    channels: int = Field(ge=1, le=64)
    timestamp: Any = None

    def __str__(self) -> str:
        return f"{self.rate} Hz, {self.width} bytes, {self.channels} channels"
