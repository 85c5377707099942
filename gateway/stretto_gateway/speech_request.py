"""Body of a speech request: OpenAI's fields and, through `extra_body`, all options of the server."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self, cast, get_args, get_origin, get_type_hints

from fastapi import Form, UploadFile
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    TypeAdapter,
    WithJsonSchema,
    create_model,
    model_validator,
)
from typing_extensions import Doc

from stretto_client import FAMILY_OPTIONS, ModelProfile, RecordedVoice, SpeakArguments
from stretto_client.markup import Markup
from stretto_contract import schema
from stretto_gateway.answers import ApiError, mismatch, refused
from stretto_gateway.catalogue import find_task
from stretto_gateway.encoding import GREATEST_SPEED, LEAST_SPEED, RATES, default_rate

MAX_NAME_CHARS = 200  # the caller chooses the names of unknown fields
MAX_CHOSEN = 16  # above the length of any valid list of choices; longer lists are refused without being read


def field_path(error: Mapping[str, Any], record: Any) -> str:
    """Return the dotted path of a validation error in `record`; empty for the whole record.

    If a field has several types, pydantic's location also contains the name of a type, which is omitted here.
    """
    names: list[str] = []
    location = error["loc"]
    for place, part in enumerate(location):
        is_missing = error["type"] == "missing" and place == len(location) - 1
        if isinstance(record, Mapping) and (part in record or is_missing):
            record = record.get(part)
        elif isinstance(record, list) and isinstance(part, int):
            record = record[part]
        else:
            continue
        names.append(str(part))
    return ".".join(names)[:MAX_NAME_CHARS].encode(errors="backslashreplace").decode()


def error_message(error: Mapping[str, Any]) -> str:
    """Return the message of a validation error, without pydantic's prefix for errors of our own."""
    return str(error["msg"]).removeprefix("Value error, ")


HEADER = "stretto-ignored"
# limits for the response header, because the caller chooses the names
MAX_NAMES = 16
MAX_SHOWN_CHARS = 64
SHOWN = re.compile(r"%[0-9A-F]{2}|.", re.DOTALL)  # what counts as a character of a name
# Other characters could end the header or an entry of its list.
UNSAFE = re.compile(r"[^A-Za-z0-9_.%\[\]-]|%(?![0-9A-F]{2})")
UNKNOWN = "Extra inputs are not permitted"  # pydantic's message, also used with `--strict`


class FieldRule(NamedTuple):
    """How the values of a field are read before they are validated.

    Attributes:
        is_required: True if the field may not be missing.
        can_be_null: True if null is a value of the field, not a missing field.
        choices: Named values of the field, keyed by lower case; empty for other fields.
    """

    is_required: bool
    can_be_null: bool
    choices: Mapping[str, str]


@cache
def field_rules(model: type[BaseModel]) -> Mapping[str, FieldRule]:
    """Return the rules of a model's fields, keyed by their names in requests."""
    return {
        field.alias or name: FieldRule(
            field.is_required(), type(None) in get_args(field.annotation), choices_in(field.annotation)
        )
        for name, field in model.model_fields.items()
    }


def choices_in(annotation: Any) -> dict[str, str]:
    """Return the named values that a type lists, also in unions and lists, keyed by lower case."""
    if get_origin(annotation) is Literal:
        return {name.lower(): name for name in get_args(annotation) if isinstance(name, str)}
    return {key: name for inner in get_args(annotation) for key, name in choices_in(inner).items()}


def is_blank(value: object) -> bool:
    """Return True if `value` is text without any visible character."""
    return isinstance(value, str) and not value.strip()


class Body(BaseModel):
    """Base class of request bodies and of the objects in them.

    A null and a blank choice count as missing, because many clients send all fields that they know. Choices have any
    letter case and may be surrounded by blanks. Unknown fields are dropped, and the names of the first few are
    recorded, unless they have no value.
    """

    model_config = ConfigDict(extra="ignore")
    _unknown: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="before")
    @classmethod
    def drop_missing(cls, record: Any) -> Any:
        """Return `record` without the fields that count as missing, and with the names of its choices."""
        if not isinstance(record, Mapping):
            return record
        rules = field_rules(cls)
        known = dict[Any, Any]()
        for name, given in record.items():
            rule = rules.get(name)
            value = given if rule is None else cls.value_of(rule, given)
            if value is not None or rule is None or rule.can_be_null:
                known[name] = value
            elif rule.is_required:
                known[name] = given  # the error describes it
        return known

    @classmethod
    def value_of(cls, rule: FieldRule, given: Any) -> Any:
        """Return the value of a field that a client gave; None if it counts as missing."""
        if rule.choices and isinstance(given, list) and len(given) <= MAX_CHOSEN:
            return [value for each in given if (value := cls.value_of(rule, each)) is not None]
        if not rule.choices or not isinstance(given, str):
            return given
        return None if is_blank(given) else rule.choices.get(given.strip().lower(), given)

    @model_validator(mode="wrap")
    @classmethod
    def drop_unknown(cls, record: Any, validate: ModelWrapValidatorHandler["Body"]) -> "Body":
        """Validate a body, and record in it the names of the first unknown fields of `record`."""
        if not isinstance(record, Mapping):
            return validate(record)
        known = field_rules(cls)
        body = validate({name: value for name, value in record.items() if name in known})
        unknown = (name for name, value in record.items() if name not in known and not cls.has_no_value(value))
        body._unknown = first_names(name[:MAX_NAME_CHARS] for name in unknown)
        return body

    @classmethod
    def has_no_value(cls, value: Any) -> bool:
        """Return True if an unknown field with this value needs no mention."""
        return value is None


class TextFields(Body):
    """Base class of forms and queries, all of whose values are text, so that a blank one counts as missing."""

    @classmethod
    def value_of(cls, rule: FieldRule, given: Any) -> Any:
        if isinstance(given, list):
            given = [each for each in given if not is_blank(each)] or None
        return None if is_blank(given) else super().value_of(rule, given)

    @classmethod
    def has_no_value(cls, value: Any) -> bool:
        return value is None or is_blank(value)


def first_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the first MAX_NAMES + 1 names, or all if there are fewer.

    The response header lists at most MAX_NAMES names. The additional one shows that the list was cut.
    """
    return tuple(name for name, _ in zip(names, range(MAX_NAMES + 1), strict=False))


def unknown_fields(body: BaseModel, path: str = "") -> Iterator[str]:
    """Yield the paths of the unknown fields that were dropped from `body` and from nested bodies."""
    if isinstance(body, Body):
        yield from (path + name for name in body._unknown)
    for name, value in body.__dict__.items():
        if isinstance(value, BaseModel):
            yield from unknown_fields(value, f"{path}{name}.")
        elif isinstance(value, list):
            for index, each in enumerate(value):
                if isinstance(each, BaseModel):
                    yield from unknown_fields(each, f"{path}{name}.{index}.")


def refuse_unknown(body: BaseModel) -> None:
    """Raise ApiError for the first unknown field of `body`."""
    for name in unknown_fields(body):
        param = name.encode(errors="backslashreplace").decode()[:MAX_NAME_CHARS]
        raise ApiError(400, f"{param}: {UNKNOWN}", param, "invalid_value")


class Ignored:
    """Names of the request fields that have no effect; a strict gateway raises an error instead."""

    def __init__(self, body: BaseModel, is_strict: bool):
        """Collect the unknown fields of `body`; raise ApiError for the first one if `is_strict`."""
        if is_strict:
            refuse_unknown(body)
        self._is_strict = is_strict
        self._names = list(first_names(unknown_fields(body)))

    def add(self, name: str, expected: str, got: object) -> None:
        """Record a field that has no effect; if the gateway is strict, raise ApiError instead.

        Args:
            name: Name of the field in the request.
            expected: Value that would have an effect, for the error message.
            got: Value in the request.
        """
        if self._is_strict:
            raise refused(name, expected, got)
        self.record(name)

    def record(self, name: str) -> None:
        """Record a field without effect that even a strict gateway accepts."""
        if name not in self._names and len(self._names) <= MAX_NAMES:
            self._names.append(name)

    @property
    def names(self) -> list[str]:
        """Recorded names, limited in number, length and characters; `...` replaces any others."""
        shown = [UNSAFE.sub("?", "".join(SHOWN.findall(name)[:MAX_SHOWN_CHARS])) for name in self._names[:MAX_NAMES]]
        return shown + ["..."] * (len(self._names) > MAX_NAMES)

    @property
    def headers(self) -> dict[str, str]:
        """Response header that lists the ignored request fields; empty if none were ignored."""
        return {HEADER: ", ".join(self.names)} if self._names else {}


# The server's limits (`records/json_record.py`), checked here to limit memory.
MAX_BYTES = 16 * 1024
MAX_DEPTH = 8
OBJECT_BYTES = 48  # maximum memory per byte of JSON after parsing, because two bytes can be a list
SMALL_BYTES = 1024  # JSON that is always admitted


def most_bytes(value: Any) -> int:
    """Return an upper bound on the size of `value` as JSON, without serialising it.

    A character has at most 12 bytes.
    """
    if isinstance(value, dict):
        return 2 + sum(4 + most_bytes(name) + most_bytes(each) for name, each in value.items())
    if isinstance(value, list):
        return 2 + sum(2 + most_bytes(each) for each in value)
    if isinstance(value, str):
        return 2 + 12 * len(value)
    return 6 + value.bit_length() // 3 if isinstance(value, int) else 25


def check_json(value: Any, param: str) -> None:
    """Raise ApiError for the field `param` if `value` exceeds the server's JSON limits."""
    depth = 0
    num_values = 1
    level = [value]
    while level := [each for each in level if isinstance(each, (list, dict))]:
        depth = depth + 1
        num_values = num_values + sum(map(len, level))
        if depth > MAX_DEPTH:
            raise mismatch(param, f"at most {MAX_DEPTH} levels of JSON", "more")
        if num_values > MAX_BYTES:  # checked before serialising
            raise mismatch(param, f"at most {MAX_BYTES} values of JSON", f"{num_values} values")
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    if most_bytes(value) > MAX_BYTES and (num_bytes := len(json.dumps(value))) > MAX_BYTES:
        raise mismatch(param, f"at most {MAX_BYTES} bytes of JSON", f"{num_bytes} bytes")


def check_options_size(options: dict[str, Any]) -> None:
    """Raise ApiError for the first option that makes the options exceed the server's JSON limits."""
    for name, value in options.items():
        check_json({name: value}, name)
    if most_bytes(options) <= MAX_BYTES:
        return
    num_bytes = 0
    for name, value in options.items():
        num_bytes += len(json.dumps({name: value}))
        if num_bytes > MAX_BYTES:
            raise mismatch(name, f"at most {MAX_BYTES} bytes of JSON in all options", f"{num_bytes} bytes")


def held_bytes(options: Mapping[str, object]) -> int:
    """Return how many bytes stored options occupy beyond the small amount that is always admitted."""
    if most_bytes(dict(options)) <= SMALL_BYTES:
        return 0
    return OBJECT_BYTES * max(0, len(json.dumps(options)) - SMALL_BYTES)


AUTO = "auto"  # the model chooses the language
# ISO 639-1 and 639-2 codes of languages that speech models list; other languages can only be given by English name.
CODES = dict(
    pair.split(":")
    for pair in (
        "ar:arabic cs:czech da:danish de:german el:greek en:english es:spanish fi:finnish fr:french he:hebrew hi:hindi "
        "hu:hungarian id:indonesian it:italian ja:japanese ko:korean ms:malay nl:dutch no:norwegian pl:polish "
        "pt:portuguese ro:romanian ru:russian sv:swedish sw:swahili th:thai tr:turkish uk:ukrainian vi:vietnamese "
        "zh:chinese deu:german eng:english fra:french ita:italian jpn:japanese kor:korean por:portuguese rus:russian "
        "spa:spanish zho:chinese"
    ).split()
)


def language_name(profile: ModelProfile, language: object) -> str:
    """Return the model's name for a language, or AUTO.

    Args:
        profile: The served model. If it lists no languages, the server checks the name.
        language: An English name, a code such as `en` or `en-US`, or `Auto`.

    Raises:
        ApiError: The model does not support the language.
    """
    if not isinstance(language, str):
        raise refused("language", "the name or code of a language", language)
    name = code_name(language)
    choices = language_choices(profile)
    if name not in choices and (profile.requires_language or (name != AUTO and profile.languages)):
        raise refused("language", f"one of {', '.join(choices)}", language)
    return name


def language_choices(profile: ModelProfile) -> tuple[str, ...]:
    """Return the names that a request may specify as its language."""
    return profile.languages if profile.requires_language else (AUTO, *profile.languages)


def code_name(language: str) -> str:
    """Return the lower-case English name for a code such as `en` or `en-US`, or the name itself."""
    plain = language.strip().lower()
    return CODES.get(plain.replace("_", "-").partition("-")[0], plain) or AUTO


SET_BY_GATEWAY = ("output", "instruct")  # options that the gateway sets from fields of other APIs
OPTIONS = tuple(name for name in schema.SpeechOptions.__annotations__ if name not in SET_BY_GATEWAY)
WITH_FILE = Form(media_type="multipart/form-data")
AudioFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm", "mulaw", "alaw"]
TaskType = Literal["Base", "CustomVoice", "VoiceDesign"]  # names from Qwen3-TTS, as in vLLM-Omni's API
Speed = Annotated[float | None, Field(ge=LEAST_SPEED, le=GREATEST_SPEED, allow_inf_nan=False)]
NumFrames = Annotated[int | None, Field(ge=1)]
FRAME_LIMITS = ("max_new_tokens", "max_completion_tokens")
MAX_REF_CHARS = 4000


def given_options(record: dict[str, Any]) -> dict[str, Any]:
    """Return the server's options in `record`, including its instructions."""
    return {name: value for name in (*OPTIONS, "instructions") if (value := record.get(name)) is not None}


def whole_characters(text: str) -> str:
    """Return `text`; raise ValueError if it contains lone surrogates, which JSON allows but UTF-8 does not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("expected text without lone surrogates, got one") from None
    return text


Text = Annotated[str, AfterValidator(whole_characters)]


def expect_file(value: Any) -> Any:
    """Return `value`; raise ValueError if it is a form field without a file."""
    if isinstance(value, str):
        raise ValueError("expected an uploaded file, got text (with curl: -F FIELD=@PATH, with the @)")
    return value


File = Annotated[UploadFile, BeforeValidator(expect_file)]


class VoiceId(Body):
    """Voice as an object, sent by newer SDKs."""

    id: Text


class Voiced(Body):
    """Base class of request bodies with a voice."""

    voice: Text | VoiceId | None = Field(default=None, description="a name or an id of `/v1/audio/voices`")

    @property
    def voice_name(self) -> str | None:
        """Name of the requested voice; None for the default, also if the name is blank."""
        name = self.voice.id if isinstance(self.voice, VoiceId) else self.voice
        return None if is_blank(name) else name


class Reference(Body):
    """Recording of a voice with its transcript, as in Higgs Audio's API."""

    audio_path: Text
    text: Annotated[Text, Field(max_length=MAX_REF_CHARS)] | None = None


class SpeechForm(Voiced):
    """Fields of other APIs that a speech request accepts."""

    model: Text = Field(default="tts-1", description="a name of `/v1/models`, or an alias")
    instructions: Text | None = Field(default=None, description="how to speak, for families that take instructions")
    response_format: AudioFormat = "mp3"
    markup: Markup = Field(default="auto", description="markup that is not read aloud; `auto`: Markdown, or SSML")
    speed: Speed = Field(default=None, description="2 halves the duration; the pitch is unchanged")
    sample_rate: int | None = Field(
        default=None,
        ge=schema.LOWEST_RATE,
        le=schema.HIGHEST_RATE,
        description="in Hz; 24000 by default, and 8000 for mulaw and alaw",
    )
    stream: bool | None = Field(default=None, description="no effect: audio is always sent as it is generated")
    task_type: TaskType | None = Field(default=None, description="how the voice is selected, if the model supports it")
    ref_audio: Text | None = Field(
        default=None, description="a recording of the voice: a data: URL, or base64 of a wav, flac, ogg or mp3 file"
    )
    ref_text: Text | None = Field(default=None, max_length=MAX_REF_CHARS, description="transcript of `ref_audio`")
    references: Annotated[list[Reference], Field(max_length=1, fail_fast=True)] | None = Field(
        default=None, description="one recording: `audio_path` as `ref_audio`, `text` as `ref_text`"
    )
    x_vector_only_mode: bool | None = Field(default=None, description="true: without `ref_text`")
    speaker: Text | None = Field(default=None, description="the voice, if there is no `voice`")
    initial_codec_chunk_frames: NumFrames = Field(default=None, description="`first_frames` of `chunking`")
    non_streaming_mode: bool | None = Field(default=None, description="true: `text_mode` `whole`; false: `streaming`")
    max_new_tokens: NumFrames = Field(default=None, description="maximum number of frames per clause")
    max_completion_tokens: NumFrames = Field(default=None, description="the same")


def option_field(hint: Any) -> Any:
    """Return the request field for an option.

    Its type is only documentation, because the server checks its value.
    """
    (doc,) = [mark.documentation for mark in get_args(hint) if isinstance(mark, Doc)]
    documented = {"anyOf": [TypeAdapter(hint).json_schema(), {"type": "null"}]}
    return Annotated[Any, WithJsonSchema(documented)], Field(default=None, description=doc)


if TYPE_CHECKING:
    WithOptions = SpeechForm
else:
    HINTS = get_type_hints(schema.SpeechOptions, include_extras=True)
    FIELDS = {name: option_field(HINTS[name]) for name in OPTIONS}
    WithOptions = create_model("WithOptions", __base__=SpeechForm, **FIELDS)


class SpeechFields(WithOptions):
    """Fields of a speech request. In a batch, they may be set once for all items."""

    @model_validator(mode="before")
    @classmethod
    def few_options(cls, record: Any) -> Any:
        """Return `record`; raise ApiError if its options exceed the server's JSON limits."""
        if isinstance(record, dict):
            check_options_size(given_options(record))
        return record

    @model_validator(mode="after")
    def use_other_names(self) -> Self:
        """Set the fields of this API that are missing from those of other APIs."""
        if self.ref_audio is None and self.references:
            self.ref_audio = self.references[0].audio_path
            self.ref_text = self.references[0].text
        if self.x_vector_only_mode:
            self.ref_text = None
        if self.voice_name is None and not is_blank(self.speaker):
            self.voice = self.speaker
        return self

    @property
    def rate(self) -> int:
        """Sample rate of the audio in Hz."""
        return default_rate(self.response_format) if self.sample_rate is None else self.sample_rate

    @property
    def voice_field(self) -> str:
        """Name of the field that selects the voice, for the server's errors about it."""
        return "voice" if self.ref_audio is None else "ref_audio"

    @property
    def options(self) -> dict[str, Any]:
        """Options that the server checks, under the server's names."""
        given = given_options(vars(self))
        if self.initial_codec_chunk_frames is not None and isinstance(given.get("chunking", {}), dict):
            given["chunking"] = {"first_frames": self.initial_codec_chunk_frames} | given.get("chunking", {})
        instruct = given.pop("instructions", "")
        return given | {"instruct": instruct} if instruct else given

    def for_server(self, profile: ModelProfile, ignored: Ignored, voice: RecordedVoice | str | None) -> SpeakArguments:
        """Return the arguments of `SpeechClient.speak` except the text.

        Args:
            profile: The served model.
            ignored: Receives the fields that this model does not support.
            voice: Recorded voice, or the model's name of a voice; None for the default.

        Raises:
            ApiError: A value is invalid, or a field has no effect and the gateway is strict.
        """
        rates = RATES.get(self.response_format)
        if rates is not None and self.rate not in rates:
            raise refused("sample_rate", f"one of {', '.join(map(str, rates))} for {self.response_format}", self.rate)
        options = self._honoured(profile, ignored)
        options |= {"encoding": "pcm_s16le", "sample_rate": self.rate, "markup": self.markup}
        options["voice"] = voice
        return options

    def _honoured(self, profile: ModelProfile, ignored: Ignored) -> SpeakArguments:
        """Return the options that the model supports; add the others to `ignored`."""
        options = self.options
        for name in FAMILY_OPTIONS:
            if name in options and name not in profile.options:
                field = "instructions" if name == "instruct" else name
                ignored.add(field, f"no value ({profile.family!r} does not support this field)", options.pop(name))
        if "language" in options:
            options |= {"language": language_name(profile, options["language"])}
            if options["language"] == AUTO:
                del options["language"]
        elif profile.requires_language:
            raise refused("language", f"one of {', '.join(language_choices(profile))}", "no value")
        if self.non_streaming_mode is not None and "text_mode" in profile.options:
            options.setdefault("text_mode", "whole" if self.non_streaming_mode else "streaming")
        # without streamed text input, the model reads the whole text before its first frame
        elif self.non_streaming_mode is False:
            ignored.add(
                "non_streaming_mode", f"true or no value ({profile.family!r} reads the whole text first)", False
            )
        self._check_task_type(profile, ignored)
        options |= self._length(profile, options.get("max_audio_s"), ignored)
        return cast(SpeakArguments, options)  # the server checks the types

    def _check_task_type(self, profile: ModelProfile, ignored: Ignored) -> None:
        """Record a `task_type` as ignored if it does not describe how this model selects a voice."""
        clones = "audio" in find_task(profile, ("tts",), "text to speech").system
        designs = "instruct" in profile.options and not clones and not profile.voices
        ways = {"Base": clones, "CustomVoice": bool(profile.voices), "VoiceDesign": designs}
        if self.task_type is not None and not ways[self.task_type]:
            known = [way for way, is_there in ways.items() if is_there]
            ignored.add("task_type", f"{' or '.join(known) or 'no value'} for {profile.family!r}", self.task_type)

    def _length(self, profile: ModelProfile, max_audio_s: Any, ignored: Ignored) -> dict[str, float]:
        """Return `max_audio_s` for the requested number of frames, if that is the tighter limit."""
        limits = {name: limit for name in FRAME_LIMITS if (limit := getattr(self, name)) is not None}
        if not limits:
            return {}
        longest_s = find_task(profile, ("tts",), "text to speech").max_speech_s
        if not profile.frame_rate or not longest_s:
            for name, limit in limits.items():
                expected = f"no value (the server does not report the frame rate of {profile.family!r})"
                ignored.add(name, expected, limit)
            return {}
        seconds = min(limits.values()) / profile.frame_rate
        is_tighter = seconds < (max_audio_s if isinstance(max_audio_s, int | float) else longest_s)
        return {"max_audio_s": seconds} if is_tighter else {}


class SpeechItem(SpeechFields):
    """Text to speak with its options."""

    input: Text


class SpeechRequest(SpeechItem):
    """Text to speak with its options, and the format of the response."""

    stream_format: Literal["audio", "sse"] = "audio"
    timestamps: bool = Field(default=False, description="with `sse`: events with the start time of each word")
    word_timestamps: bool = Field(default=False, description="with `sse`: the same; otherwise without effect")
