"""Settings of realtime sessions: the supported OpenAI fields, and how updates are applied."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationInfo, field_validator

from stretto_client import ModelProfile
from stretto_gateway import g711
from stretto_gateway.answers import ApiError, error_path, refused
from stretto_gateway.catalogue import CallersVoices, Catalogue, find_task
from stretto_gateway.encoding import DEFAULT_RATE, GREATEST_SPEED, LEAST_SPEED
from stretto_gateway.fields import IGNORED, MAX_NAME_CHARS, Body, Text, field_rules, validated
from stretto_gateway.speech_request import Voiced

MAX_INSTRUCTION_CHARS = 100_000  # not counted in the session's memory account
MAX_ERRORS = 16  # maximum number of errors reported for one update
MAX_IGNORED = 32  # maximum number of fields named in one event
ASR = ("asr",)
FINISH_REASON = "stretto_finish_reason"  # added to OpenAI's events about transcripts that a limit has ended
TURN_END = "stretto_turn_end"  # added to OpenAI's events about sessions with `semantic_vad`
# OpenAI's transcription models without turn detection, whose clients commit each turn themselves.
WITHOUT_VAD = ("gpt-realtime-whisper", "gpt-live-transcribe")
# Session fields of the beta API (2024) and their current paths.
BETA_FIELDS = {
    "modalities": ("output_modalities",),
    "max_response_output_tokens": ("max_output_tokens",),
    "voice": ("audio", "output", "voice"),
    "speed": ("audio", "output", "speed"),
    "output_audio_format": ("audio", "output", "format"),
    "input_audio_format": ("audio", "input", "format"),
    "input_audio_noise_reduction": ("audio", "input", "noise_reduction"),
    "input_audio_transcription": ("audio", "input", "transcription"),
    "turn_detection": ("audio", "input", "turn_detection"),
}
BETA_FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
Name = Annotated[Text, Field(max_length=MAX_NAME_CHARS)]
Modality = Literal["text", "audio"]
Modalities = Annotated[list[Modality], Field(min_length=1, max_length=1, fail_fast=True)]


class Only:
    """Annotation of a field without effect, with the values that even a strict gateway accepts."""

    def __init__(self, *values: Any):
        self.values = (None, *values)


Nothing = Annotated[Any, Only()]
NoList = Annotated[Any, Only([])]


PCM = "audio/pcm"
G711: dict[str, g711.Law] = {"audio/pcmu": "mulaw", "audio/pcma": "alaw"}


class Format(Body):
    """Audio format of the input or the output: 16-bit samples at 24 kHz, or G.711 at 8 kHz."""

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    # OpenAI's types have a rate only for `audio/pcm`; other APIs send one for G.711, too.
    rate: int = Field(default=0, validate_default=True, exclude_if=lambda rate: rate == g711.RATE)

    @property
    def law(self) -> g711.Law | None:
        """Law of G.711; None for 16-bit samples."""
        return G711.get(self.type)

    @field_validator("rate")
    @classmethod
    def check_rate(cls, rate: int, info: ValidationInfo) -> int:
        """Return the sample rate of the type in Hz; raise ValueError if `rate` differs from it (0: not set)."""
        format_type = info.data.get("type", PCM)
        expected = DEFAULT_RATE if format_type == PCM else g711.RATE
        if rate not in (0, expected):
            raise ValueError(f"Input should be {expected} for {format_type}")
        return expected


class ServerVad(Body):
    """Turn detection by silence."""

    type: Literal["server_vad"] = "server_vad"
    threshold: float = Field(default=0.5, ge=0, le=1, allow_inf_nan=False)
    prefix_padding_ms: int = Field(default=300, ge=0, le=5000)
    silence_duration_ms: int = Field(default=500, ge=0, le=10_000)
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: Nothing = None


@dataclass(frozen=True, slots=True)
class Eagerness:
    """Rules of `semantic_vad`.

    Attributes:
        silence_ms: Silence that ends a turn if there is no end-of-turn model, or no answer from it.
        longest_ms: Silence that ends a turn although the model considers it incomplete; the same as at OpenAI.
        threshold: Probability from which the model considers a turn complete.
    """

    silence_ms: int
    longest_ms: int
    threshold: float


USUAL = Eagerness(500, 4000, 0.5)
EAGERNESS = {"low": Eagerness(1000, 8000, 0.7), "medium": USUAL, "auto": USUAL, "high": Eagerness(300, 2000, 0.3)}


class SemanticVad(Body):
    """Turn detection by an end-of-turn model or, without one, by silence of a duration that depends on `eagerness`."""

    type: Literal["semantic_vad"] = "semantic_vad"
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: bool = True
    interrupt_response: bool = True

    @property
    def server_vad(self) -> ServerVad:
        """Equivalent settings of type `server_vad`."""
        return ServerVad(
            silence_duration_ms=EAGERNESS[self.eagerness].silence_ms,
            create_response=self.create_response,
            interrupt_response=self.interrupt_response,
        )


def vad_type(value: Any) -> Any:
    """Return the `type` of a turn detection object; `server_vad` if missing."""
    return value.get("type", "server_vad") if isinstance(value, dict) else getattr(value, "type", None)


TurnDetection = Annotated[
    Annotated[ServerVad, Tag("server_vad")] | Annotated[SemanticVad, Tag("semantic_vad")], Discriminator(vad_type)
]


class Transcription(Body):
    """Request for transcripts of the user's audio."""

    model: Name | None = None
    language: Name | None = None
    prompt: Annotated[Text, Field(max_length=MAX_INSTRUCTION_CHARS)] | None = None
    languages: NoList = None
    keywords: NoList = None
    delay: Nothing = None


class InputAudioSettings(Body):
    """Settings of the user's audio."""

    format: Format = Field(default_factory=Format)
    noise_reduction: Nothing = None
    transcription: Transcription | None = None
    turn_detection: TurnDetection | None = Field(default_factory=ServerVad)

    @property
    def vad(self) -> ServerVad | None:
        """Rules of turn detection; None if it is off."""
        return self.turn_detection.server_vad if isinstance(self.turn_detection, SemanticVad) else self.turn_detection

    @property
    def eagerness(self) -> Eagerness | None:
        """Rules of `semantic_vad`; None for other turn detection."""
        return EAGERNESS[self.turn_detection.eagerness] if isinstance(self.turn_detection, SemanticVad) else None


class OutputAudio(Voiced):
    """Settings of the model's audio."""

    format: Format = Field(default_factory=Format)
    speed: float | None = Field(default=None, ge=LEAST_SPEED, le=GREATEST_SPEED, allow_inf_nan=False)


class Audio(Body):
    """Audio settings of a session of type `realtime`."""

    input: InputAudioSettings = Field(default_factory=InputAudioSettings)
    output: OutputAudio = Field(default_factory=OutputAudio)


class ReplyAudio(Body):
    """Audio settings of one reply."""

    output: OutputAudio = Field(default_factory=OutputAudio)


class TranscriptionAudio(Body):
    """Audio settings of a session that only transcribes."""

    input: InputAudioSettings = Field(default_factory=lambda: InputAudioSettings(transcription=Transcription()))


class ReplyOptions(Body):
    """Session settings that one reply may override. No family supports tools or a token limit."""

    instructions: Annotated[Text, Field(max_length=MAX_INSTRUCTION_CHARS)] | None = None
    output_modalities: Modalities | None = None
    max_output_tokens: Annotated[Any, Only("inf")] = None
    tools: NoList = None
    tool_choice: Annotated[Any, Only("auto", "none")] = None
    parallel_tool_calls: Annotated[Any, Only(True, False)] = None
    prompt: Nothing = None
    reasoning: Nothing = None


class RealtimeSettings(ReplyOptions):
    """Settings of a session of type `realtime`, in which the model answers the user."""

    type: Literal["realtime"] = "realtime"
    model: Text
    output_modalities: Modalities = Field(default=["audio"])
    audio: Audio = Field(default_factory=Audio)
    include: NoList = None
    tracing: Nothing = None
    truncation: Annotated[Any, Only("auto")] = None

    async def check(self, profile: ModelProfile, voices: CallersVoices) -> None:
        """Raise ApiError if replies cannot have the voice in these settings; `voices` contains the caller's own."""
        with error_path("audio.output"):
            await voices.check(profile, self.audio.output.voice_name)


class TranscriptionSettings(Body):
    """Settings of a session that only transcribes."""

    type: Literal["transcription"] = "transcription"
    audio: TranscriptionAudio = Field(default_factory=TranscriptionAudio)
    include: NoList = None

    async def check(self, profile: ModelProfile, _: CallersVoices) -> None:
        """Raise ApiError if the model does not transcribe."""
        find_task(profile, ASR, "transcription")


Settings = RealtimeSettings | TranscriptionSettings


def session_record(settings: Settings, session_id: str, expires_at: int) -> dict[str, Any]:
    """Return OpenAI's `session` object; `expires_at` is in seconds since the epoch."""
    prefix = "" if isinstance(settings, RealtimeSettings) else "transcription_"
    record: dict[str, Any] = {"id": session_id, "object": f"realtime.{prefix}session", "expires_at": expires_at}
    record |= settings.model_dump()
    audio_input = record["audio"]["input"]
    if audio_input["transcription"] is not None:  # without empty fields: Pipecat's type accepts only three fields
        audio_input["transcription"] = {name: value for name, value in audio_input["transcription"].items() if value}
    return record


class SettingsChange:
    """Update of a session's settings: the new settings, the ignored fields, and errors in other fields.

    A field with an invalid value keeps its previous value; the other fields of the update are applied.

    Args:
        model: Model name for a session that changes to type realtime.
    """

    def __init__(self, settings: Settings, update: dict[str, Any], model: str, can_change_type: bool = True):
        self.ignored: list[ApiError] = []
        self.errors: list[ApiError] = []
        session_type = self._kind(settings, update.get("type") or settings.type, can_change_type)
        self._model: type[Settings] = RealtimeSettings if session_type == "realtime" else TranscriptionSettings
        self._before = settings.model_dump() if session_type == settings.type else {}
        if session_type == "realtime":
            self._before = self._before or {"model": model}
        update = without_vad(current_shape(update) | {"type": session_type})
        self._record = merged(self._model, self._before, update, "session", self.ignored)
        self.settings = self._valid()

    def refuse(self, error: ApiError) -> None:
        """Restore the field to which `error` refers, and record the error; raise it if the update has no such field."""
        if len(self.errors) >= MAX_ERRORS or not undo(self._record, self._before, path_in_session(error)):
            raise error
        self.errors.append(error)
        self.settings = self._valid()

    def ignore(self, name: str, expected: str, got: Any) -> None:
        """Restore the previous value of a field that has no effect, and record the field."""
        self.ignored.append(refused(f"session.{name}", expected, got))
        undo(self._record, self._before, name.split("."))
        self.settings = self._valid()

    def expect_honoured(self) -> None:
        """Raise the first ApiError if a field was ignored or invalid. A strict gateway calls this."""
        for error in (*self.ignored, *self.errors):
            raise error

    def _kind(self, settings: Settings, session_type: Any, can_change_type: bool) -> str:
        """Return the type of the session after the update."""
        if session_type not in ("realtime", "transcription"):
            self.errors.append(refused("session.type", "realtime or transcription", session_type))
        elif session_type != settings.type and not can_change_type:
            expected = f"{settings.type!r}, because a conversation cannot change its type"
            self.errors.append(refused("session.type", expected, session_type))
        else:
            return str(session_type)
        return settings.type

    def _valid(self) -> Settings:
        """Return the settings after the update, without its invalid fields."""
        while True:
            try:
                return validated(self._model, self._record, "session")
            except ApiError as error:
                names = path_in_session(error)
                while names and not undo(self._record, self._before, names):
                    names = names[:-1]  # a field is missing: undo the whole object
                if not names or len(self.errors) >= MAX_ERRORS:
                    raise
                self.errors.append(error)


async def restrict_to_model(
    change: SettingsChange, catalogue: Catalogue, listener: Catalogue, model: str, voices: CallersVoices
) -> ModelProfile:
    """Return the profile of a session's model, and undo fields of `change` that the model does not support."""
    while True:
        settings = change.settings
        try:
            with error_path("session"):
                name = settings.model if isinstance(settings, RealtimeSettings) else model
                profile = await catalogue.model(name)
                await settings.check(profile, voices)
        except ApiError as error:
            change.refuse(error)
            continue
        transcription = settings.audio.input.transcription
        if transcription is None:
            return profile
        task = (await listener.profile()).task(ASR[0])
        if task is None:
            expected = f"no value ({profile.family!r} does not transcribe)"
            change.ignore("audio.input.transcription", expected, transcription.model)
        elif transcription.prompt and "text" not in task.system:
            expected = "no value (this model does not use a prompt for transcription)"
            change.ignore("audio.input.transcription.prompt", expected, transcription.prompt)
        return profile


def current_shape(update: dict[str, Any]) -> dict[str, Any]:
    """Move the beta API's fields in a session update to their current paths, and make its formats objects."""
    record = {name: value for name, value in update.items() if name not in BETA_FIELDS}
    for name, path in BETA_FIELDS.items():
        if name not in update:
            continue
        value = update[name]
        if name == "modalities" and isinstance(value, list) and "audio" in value:
            value = ["audio"]
        for step in reversed(path):
            value = {step: value}
        record = joined(value, record)
    audio = record.get("audio")
    for direction, settings in audio.items() if isinstance(audio, dict) else ():
        wire_format = settings.get("format") if isinstance(settings, dict) else None
        if isinstance(wire_format, str):
            form = {"type": BETA_FORMATS.get(wire_format.strip().lower(), wire_format)}
            record = joined(record, {"audio": {direction: {"format": form}}})
    return record


def check_formats(update: dict[str, Any]) -> dict[str, ApiError | None]:
    """Return an error or None for each format, of `input` and `output`, that a session update sets."""
    audio = current_shape(update).get("audio")
    errors = dict[str, ApiError | None]()
    for direction in ("input", "output"):
        settings = audio.get(direction) if isinstance(audio, dict) else None
        record = settings.get("format") if isinstance(settings, dict) else None
        if record is not None:
            errors[direction] = None
            try:
                validated(Format, record, f"session.audio.{direction}.format")
            except ApiError as error:
                errors[direction] = error
    return errors


def joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Merge `new` into `old`, object by object."""
    both = {
        name: joined(old[name], value) if isinstance(value, dict) and isinstance(old.get(name), dict) else value
        for name, value in new.items()
    }
    return old | both


def without_vad(update: dict[str, Any]) -> dict[str, Any]:
    """Switch off turn detection in a session update that names an OpenAI model without turn detection."""
    try:
        audio_input = update["audio"]["input"]
        name = audio_input["transcription"]["model"]
        if update["type"] == "transcription" and name.startswith(WITHOUT_VAD) and "turn_detection" not in audio_input:
            return joined(update, {"audio": {"input": {"turn_detection": None}}})
    except (KeyError, TypeError, AttributeError):
        pass
    return update


def merged(
    model: type[BaseModel], old: dict[str, Any], new: dict[str, Any], path: str, ignored: list[ApiError]
) -> dict[str, Any]:
    """Merge the fields of `new` that have an effect into `old`, object by object.

    If a field cannot be null, a null counts as a missing field. Objects of different types are not merged.

    Args:
        path: Path of the object; empty for a whole event.
        ignored: Receives, for each field without effect, the error that a strict gateway raises.
    """
    both = dict(old)
    rules = field_rules(model)
    for name, value in new.items():
        field = model.model_fields.get(name)
        where = f"{path}.{name}" if path else name
        only = next((entry for entry in field.metadata if isinstance(entry, Only)), None) if field else None
        if field is None or (only is not None and value not in only.values):
            if value is not None:
                add_ignored(ignored, where, only, value)
        elif value is not None or only is not None or rules[name].can_be_null:
            both[name] = known_value(field.annotation, old.get(name), value, where, ignored)
    return both


def known_value(annotation: Any, old: Any, value: Any, path: str, ignored: list[ApiError]) -> Any:
    """Merge a field's value, without unsupported fields, into the old value; return the result."""
    if isinstance(value, list):
        return [known_value(annotation, None, item, f"{path}.{n}", ignored) for n, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    before = old if isinstance(old, dict) else {}
    type_name = value.get("type", before.get("type"))
    inner = inner_model(annotation, type_name)
    if inner is None:
        return value
    return merged(inner, before if before.get("type") == type_name else {}, value, path, ignored)


def inner_model(annotation: Any, type_name: Any) -> type[Body] | None:
    """Return the pydantic model for a field's objects; for a union, the member whose type is `type_name`."""
    models = list(models_in(annotation))
    named = (
        model
        for model in models
        if "type" in model.model_fields and type_name in get_args(model.model_fields["type"].annotation)
    )
    return next(named, models[0] if models else None)


def models_in(annotation: Any) -> list[type[Body]]:
    """Return all pydantic models in a type annotation, including those in unions and lists."""
    if isinstance(annotation, type) and issubclass(annotation, Body):
        return [annotation]
    return [model for member in get_args(annotation) for model in models_in(member)]


def add_ignored(ignored: list[ApiError], param: str, only: Only | None, value: Any) -> None:
    """Append the error for a field without effect to `ignored`, up to MAX_IGNORED; `only` has the accepted values."""
    if len(ignored) < MAX_IGNORED:
        values = " or ".join(repr(allowed) for allowed in only.values[1:]) if only else ""
        name = param[:MAX_NAME_CHARS].encode(errors="backslashreplace").decode()
        ignored.append(refused(name, values or "no value (unknown field)", value))


def ignoring(ignored: Sequence[ApiError]) -> dict[str, list[str]]:
    """Return the event field that lists the ignored fields; empty if nothing was ignored."""
    return {IGNORED: [error.param or "" for error in ignored]} if ignored else {}


def path_in_session(error: ApiError) -> list[str]:
    """Return the path within the session of the field that `error` is about."""
    return (error.param or "").split(".")[1:]


def undo(record: dict[str, Any], before: dict[str, Any], names: list[str]) -> bool:
    """Reset a field to its value in `before`; return False if it already has that value.

    An invalid `type` resets its whole object, because the other fields belong to that type.
    """
    if names[-1:] == ["type"] and len(names) > 1:
        names = names[:-1]
    for name in names[:-1]:
        inner = record.get(name)
        if not isinstance(inner, dict):
            return False
        record[name] = inner = dict(inner)
        old = before.get(name)
        # fields of another type are no previous values
        record = inner
        before = old if isinstance(old, dict) and old.get("type") == inner.get("type") else {}
    if not names or names[-1] not in record or (names[-1] in before and record[names[-1]] == before[names[-1]]):
        return False
    if names[-1] in before:
        record[names[-1]] = before[names[-1]]
    else:
        del record[names[-1]]
    return True
