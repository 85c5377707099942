"""What a session is told to be: OpenAI's fields, as far as they mean something here."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from stretto_client import ModelProfile
from stretto_gateway.api_error import ApiError, refused, shown, within
from stretto_gateway.catalogue import find_task, find_voice
from stretto_gateway.field_path import MAX_NAME_CHARS, field_path
from stretto_gateway.speech_request import Body, Text, Voiced

NO_LIST = Field(default=None, max_length=0, fail_fast=True)
MAX_INSTRUCTION_CHARS = 100_000  # a session keeps them, beside the bytes that are counted
Name = Annotated[Text, Field(max_length=MAX_NAME_CHARS)]
Modality = Literal["text", "audio"]
Modalities = Annotated[list[Modality], Field(min_length=1, max_length=1, fail_fast=True)]
Model = TypeVar("Model", bound=BaseModel)


class Format(Body):
    """The one form that audio has here, in both directions."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Literal[24000] | None = 24000


class ServerVad(Body):
    """When a turn of the user's begins and ends."""

    type: Literal["server_vad"] = "server_vad"
    threshold: float = Field(default=0.5, ge=0, le=1, allow_inf_nan=False)
    prefix_padding_ms: int = Field(default=300, ge=0, le=5000)
    silence_duration_ms: int = Field(default=500, ge=0, le=10_000)
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: None = None


class Transcription(Body):
    """Asks for a transcript. `language` is what the caller knows; no family here asks for it."""

    model: Name | None = None
    language: Name | None = None
    prompt: Literal[""] | None = None


class InputAudio(Body):
    """Of the user."""

    format: Format = Field(default_factory=Format)
    noise_reduction: None = None
    transcription: Transcription | None = None
    turn_detection: ServerVad | None = Field(default_factory=ServerVad)


class OutputAudio(Voiced):
    """Of the model."""

    format: Format = Field(default_factory=Format)
    speed: Literal[1] | None = None


class Audio(Body):
    """Both."""

    input: InputAudio = Field(default_factory=InputAudio)
    output: OutputAudio = Field(default_factory=OutputAudio)


class ReplyAudio(Body):
    """Of one reply."""

    output: OutputAudio = Field(default_factory=OutputAudio)


class HeardAudio(Body):
    """Of a session that only listens."""

    input: InputAudio = Field(default_factory=lambda: InputAudio(transcription=Transcription()))


class ReplyOptions(Body):
    """What a session may be told, and one reply otherwise. No family has tools, or another length than its own."""

    instructions: Annotated[Text, Field(max_length=MAX_INSTRUCTION_CHARS)] | None = None
    output_modalities: Modalities | None = None
    max_output_tokens: Literal["inf"] | None = None
    tools: list[Any] | None = NO_LIST
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None
    prompt: None = None
    reasoning: None = None


class RealtimeSettings(ReplyOptions):
    """Of a session that converses."""

    type: Literal["realtime"] = "realtime"
    model: Text
    output_modalities: Modalities = Field(default=["audio"])
    audio: Audio = Field(default_factory=Audio)
    include: list[Any] | None = NO_LIST
    tracing: None = None
    truncation: Literal["auto"] | None = None

    def check(self, profile: ModelProfile) -> None:
        """ApiError for what this model cannot do."""
        with within("audio.output"):
            find_voice(profile, self.audio.output.voice_name)


class TranscriptionSettings(Body):
    """Of a session that writes down what it hears."""

    type: Literal["transcription"] = "transcription"
    audio: HeardAudio = Field(default_factory=HeardAudio)
    include: list[Any] | None = NO_LIST

    def check(self, profile: ModelProfile) -> None:
        """ApiError for what this model cannot do."""
        find_task(profile, ("asr",), "write down what it hears")


Settings = RealtimeSettings | TranscriptionSettings


def updated(settings: Settings, update: dict[str, Any], model: str, can_change_type: bool) -> Settings:
    """The settings with all that `update` says in its place; ApiError names what cannot be.

    model: of a session that becomes one of type realtime.
    """
    kind = update.get("type")
    if kind not in ("realtime", "transcription"):
        raise refused("session.type", "realtime or transcription", kind)
    if kind != settings.type and not can_change_type:
        raise refused("session.type", f"{settings.type!r}, as which the conversation has begun", kind)
    known = settings.model_dump() if kind == settings.type else {}
    if kind == "transcription":
        return validated(TranscriptionSettings, merged(known, update), "session")
    return validated(RealtimeSettings, merged(known or {"model": model}, update), "session")


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`old` with the values of `new`, object by object."""
    both = {
        name: merged(old[name], value) if isinstance(value, dict) and isinstance(old.get(name), dict) else value
        for name, value in new.items()
    }
    return old | both


def validated(model: type[Model], record: Any, path: str = "") -> Model:
    """`record` as a `model`; ApiError for the first field that is none, as `path` and its name."""
    try:
        return model.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    param = ".".join(name for name in (path, field_path(first, record)) if name)
    if first["type"] == "missing":
        raise ApiError(400, f"{param}: missing", param, "missing")
    raise ApiError(400, f"{param}: {first['msg']}, got {shown(first['input'])}", param, "invalid_value")
