"""The body of a request for speech: OpenAI's fields, and as `extra_body` every option of the ensemble."""

from typing import Annotated, Any, Literal

from fastapi import Form
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from stretto_client import ModelProfile, RecordedVoice
from stretto_client.markup import Markup
from stretto_gateway.api_error import refused
from stretto_gateway.catalogue import find_voice
from stretto_gateway.encoding import DEFAULT_RATE, HIGHEST_RATE, LOWEST_RATE, RATES
from stretto_gateway.given_options import options_bytes

OPTIONS = (
    *("seed", "guidance_scale", "guidance", "temperature", "top_k", "top_p", "text", "audio", "max_audio_s"),
    *("script_temperature", "repetition_penalty", "schedule", "chunking", "adapter", "depth", "language", "text_mode"),
    "transliterate",
)  # which the server checks
WITH_FILE = Form(media_type="multipart/form-data")
AudioFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]


def given_options(record: dict[str, Any]) -> dict[str, Any]:
    """Those of `record`, and its instructions."""
    return {name: value for name in (*OPTIONS, "instructions") if (value := record.get(name)) is not None}


def whole_characters(text: str) -> str:
    """`text`, which must be writable as UTF-8: JSON can hold halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("expected text, got half of a character") from None
    return text


Text = Annotated[str, AfterValidator(whole_characters)]


class Body(BaseModel):
    """What a caller sends: no fields but those that mean something here, of which the first that is wrong is told.

    A list of all that is wrong with a body would take a hundred times its memory, and seconds in which nobody else is
    answered.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def first_unknown(cls, record: Any) -> Any:
        """`record` without what is unknown in it, but for the first such field."""
        if not isinstance(record, dict):
            return record
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = next((name for name in record if name not in known), None)
        return {name: value for name, value in record.items() if name in known or name == unknown}


class VoiceId(Body):
    """A voice as an object, which newer SDKs send."""

    id: Text


class Voiced(Body):
    """What is said in a voice."""

    voice: Text | VoiceId | None = Field(default=None, description="a name or an id of `/v1/audio/voices`")

    @property
    def voice_name(self) -> str | None:
        """The voice by name."""
        return self.voice.id if isinstance(self.voice, VoiceId) else self.voice


class SpeechOptions(Voiced):
    """What of a request for speech a batch may say once for all its items. Numbers and objects are the server's to
    check."""

    model: Text = Field(default="tts-1", description="a name of `/v1/models`, or one of OpenAI's")
    instructions: Text | None = Field(default=None, description="how to speak, where the family can be told")
    response_format: AudioFormat = "mp3"
    speed: float | None = Field(default=None, description="refused, but for 1: no family has another")
    markup: Markup = Field(default="auto", description="which marks are not read aloud; `auto`: Markdown, or SSML")
    sample_rate: int = Field(default=DEFAULT_RATE, ge=LOWEST_RATE, le=HIGHEST_RATE, description="in Hz")
    seed: Any = Field(default=None, description="the same seed gives the same speech")
    guidance_scale: Any = None
    guidance: Any = None
    temperature: Any = None
    top_k: Any = None
    top_p: Any = None
    text: Any = None
    audio: Any = None
    max_audio_s: Any = None
    script_temperature: Any = None
    repetition_penalty: Any = None
    schedule: Any = None
    chunking: Any = None
    adapter: Any = None
    depth: Any = None
    language: Any = None
    text_mode: Any = None
    transliterate: Any = Field(default=None, description="true: spell letters of other scripts in Latin ones")

    @model_validator(mode="before")
    @classmethod
    def few_options(cls, record: Any) -> Any:
        """`record`, where its options are no more JSON than the server takes; ApiError otherwise."""
        if isinstance(record, dict):
            options_bytes(given_options(record))
        return record

    @property
    def options(self) -> dict[str, Any]:
        """What the server is to check, as it calls it."""
        given = given_options(vars(self))
        instruct = given.pop("instructions", "")
        return given | {"instruct": instruct} if instruct else given

    def for_server(self, profile: ModelProfile, brought: RecordedVoice | None = None) -> dict[str, Any]:
        """The arguments of `SpeechClient.speak`, in the voice that was `brought` or in that of the name; ApiError names
        what this family cannot do."""
        if self.speed not in (None, 1.0):
            raise refused("speed", f"1 or none: {profile.family!r} has one speed", self.speed)
        rates = RATES.get(self.response_format)
        if rates is not None and self.sample_rate not in rates:
            raise refused("sample_rate", f"for {self.response_format} one of {rates}", self.sample_rate)
        form = {"encoding": "pcm_s16le", "sample_rate": self.sample_rate, "markup": self.markup}
        return self.options | form | {"voice": brought or find_voice(profile, self.voice_name)}


class SpeechItem(SpeechOptions):
    """One text to be spoken."""

    input: Text


class SpeechRequest(SpeechItem):
    """The same, and how it is to be sent."""

    stream_format: Literal["audio", "sse"] = "audio"
    timestamps: bool = Field(default=False, description="with `sse`: an event for the words that begin")
