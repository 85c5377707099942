"""Body of a speech request: OpenAI's fields and, through `extra_body`, all options of the server."""

from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Self,
    cast,
    get_args,
    get_type_hints,
)

from fastapi import Form, UploadFile
from pydantic import (
    BeforeValidator,
    Field,
    TypeAdapter,
    WithJsonSchema,
    create_model,
    model_validator,
)
from typing_extensions import Doc

from stretto_client import FAMILY_OPTIONS, ModelProfile, RecordedVoice, SpeakArguments
from stretto_client.continued_speech import continuing_task, independent_only, reads_either
from stretto_client.markup import Markup
from stretto_contract import schema
from stretto_contract.joins import Join
from stretto_contract.languages import AUTO, code_name
from stretto_contract.speech_checks import ATTEMPTS, MAX_ATTEMPTS, MAX_HOLD_S, Check
from stretto_gateway.answers import refused
from stretto_gateway.catalogue import find_task
from stretto_gateway.encoding import GREATEST_SPEED, LEAST_SPEED, RATES, default_rate
from stretto_gateway.fields import Body, Ignored, Text, check_options_size, is_blank


def language_name(profile: ModelProfile, language: object) -> str:
    """Return the model's name for a language, or AUTO; raise ApiError if the model does not support it.

    The language is an English name, a code such as `en` or `en-US`, or `Auto`. If the model lists no languages, the
    server checks the name.
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
    check: Check = Field(
        default="signals",
        description="`signals`: measure the speech, and list its faults; `words`: also those of its words; or `off`",
    )
    attempts: int = Field(
        default=ATTEMPTS,
        ge=1,
        le=MAX_ATTEMPTS,
        description="maximum number of different attempts for a clause; the best may be generated twice",
    )
    hold_s: float = Field(
        default=0.0,
        ge=0,
        le=MAX_HOLD_S,
        allow_inf_nan=False,
        description="least duration of speech in seconds that is held back until it is checked",
    )
    join: Join = Field(
        default="independent",
        description="`continued`: each clause of a long text continues the speech before, in families that can",
    )
    cache: bool | None = Field(
        default=None,
        description="true: answer also without a seed, or in an own voice, from the gateway's cache; false: generate",
    )
    speed: Speed = Field(default=None, description="2 halves the duration; the pitch is unchanged")
    sample_rate: int | None = Field(
        default=None,
        ge=schema.LOWEST_RATE,
        le=schema.HIGHEST_RATE,
        description="in Hz; 24000 by default, and 8000 for mulaw and alaw",
    )
    stream: bool | None = Field(default=None, description="false, without `stream_format`: the file as a whole")
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
    """Return the request field for an option; its type is only documentation, because the server checks the value."""
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
        """Set missing fields of this API from the corresponding fields of other APIs."""
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
    def bit_rate(self) -> int | None:
        """Bits per second of a compressed file; None for the usual one."""
        return None

    @property
    def voice_field(self) -> str:
        """Name of the field that selects the voice, for the server's errors about it."""
        return "voice" if self.ref_audio is None else "ref_audio"

    @property
    def options(self) -> dict[str, Any]:
        """Options that the server checks, under the server's names."""
        options = given_options(vars(self))
        if self.initial_codec_chunk_frames is not None and isinstance(options.get("chunking", {}), dict):
            options["chunking"] = {"first_frames": self.initial_codec_chunk_frames} | options.get("chunking", {})
        instruct = options.pop("instructions", "")
        return options | {"instruct": instruct} if instruct else options

    def for_server(self, profile: ModelProfile, ignored: Ignored, voice: RecordedVoice | str | None) -> SpeakArguments:
        """Return the arguments of `SpeechClient.speak` except the text.

        The voice is a recording, or the model's name of a voice; None for the default. ApiError is raised for an
        invalid value and, in a strict gateway, for a field without effect.
        """
        rates = RATES.get(self.response_format)
        if rates is not None and self.rate not in rates:
            raise refused("sample_rate", f"one of {', '.join(map(str, rates))} for {self.response_format}", self.rate)
        options = self._honoured(profile, ignored)
        options |= {"encoding": "pcm_s16le", "sample_rate": self.rate, "markup": self.markup}
        options |= {"voice": voice, "check": self.check, "attempts": self.attempts, "hold_s": self.hold_s}
        options["join"] = self.join
        task = continuing_task(profile)
        if self.join == "continued" and (task is None or reads_either(task, voice)):
            ignored.add("join", independent_only(profile, has_voice=task is not None), self.join)
            options["join"] = "independent"
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
            supported = [way for way, is_there in ways.items() if is_there]
            ignored.add("task_type", f"{' or '.join(supported) or 'no value'} for {profile.family!r}", self.task_type)

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
