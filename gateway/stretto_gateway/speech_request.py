"""Body of a speech request: OpenAI's fields and, as `extra_body`, every option of the ensemble."""

from typing import Annotated, Any, Literal

from fastapi import Form
from pydantic import AfterValidator, Field, model_validator

from stretto_client import FAMILY_OPTIONS, ModelProfile, RecordedVoice
from stretto_client.markup import Markup
from stretto_gateway.api_error import refused
from stretto_gateway.catalogue import find_task, find_voice
from stretto_gateway.encoding import DEFAULT_RATE, HIGHEST_RATE, LOWEST_RATE, RATES
from stretto_gateway.given_options import options_bytes
from stretto_gateway.ignored import Body, Ignored
from stretto_gateway.languages import AUTO, language_name
from stretto_gateway.time_stretch import GREATEST_SPEED, LEAST_SPEED

OPTIONS = (
    *("seed", "guidance_scale", "guidance", "temperature", "top_k", "top_p", "text", "audio", "max_audio_s"),
    *("script_temperature", "repetition_penalty", "schedule", "chunking", "adapter", "depth", "language", "text_mode"),
    "transliterate",
)  # checked by the server
WITH_FILE = Form(media_type="multipart/form-data")
AudioFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
TaskType = Literal["Base", "CustomVoice", "VoiceDesign"]  # Qwen3-TTS's names, as in vLLM-Omni's API
Speed = Annotated[float | None, Field(ge=LEAST_SPEED, le=GREATEST_SPEED, allow_inf_nan=False)]
NumFrames = Annotated[int | None, Field(ge=1)]
FRAME_LIMITS = ("max_new_tokens", "max_completion_tokens")
MAX_REF_CHARS = 4000


def given_options(record: dict[str, Any]) -> dict[str, Any]:
    """Return the options in `record`, including its instructions."""
    return {name: value for name in (*OPTIONS, "instructions") if (value := record.get(name)) is not None}


def whole_characters(text: str) -> str:
    """Return `text`; raise ValueError for lone surrogates, which JSON allows and UTF-8 does not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("expected text, got half of a character") from None
    return text


Text = Annotated[str, AfterValidator(whole_characters)]


class VoiceId(Body):
    """Voice as an object, sent by newer SDKs."""

    id: Text


class Voiced(Body):
    """Body of a request with a voice."""

    voice: Text | VoiceId | None = Field(default=None, description="a name or an id of `/v1/audio/voices`")

    @property
    def voice_name(self) -> str | None:
        """Name of the voice."""
        return self.voice.id if isinstance(self.voice, VoiceId) else self.voice


class SpeechOptions(Voiced):
    """Fields of a speech request, which a batch may set once for all items.

    The server checks options whose type is not given here.
    """

    model: Text = Field(default="tts-1", description="a name of `/v1/models`, or an alias")
    instructions: Text | None = Field(default=None, description="how to speak, for families that take instructions")
    response_format: AudioFormat = "mp3"
    markup: Markup = Field(default="auto", description="which marks are not read aloud; `auto`: Markdown, or SSML")
    speed: Speed = Field(default=None, description="2 halves the duration; the pitch stays")
    sample_rate: int = Field(default=DEFAULT_RATE, ge=LOWEST_RATE, le=HIGHEST_RATE, description="in Hz")
    stream: bool | None = Field(default=None, description="no effect: audio is always sent as it is made")
    task_type: TaskType | None = Field(default=None, description="how the voice is chosen, if the model has that way")
    ref_audio: Text | None = Field(
        default=None, description="a recording of the voice: a data: URL, or base64 of a wav, flac, ogg or mp3 file"
    )
    ref_text: Text | None = Field(default=None, max_length=MAX_REF_CHARS, description="the words of `ref_audio`")
    non_streaming_mode: bool | None = Field(default=None, description="true: `text_mode` `whole`; false: `streaming`")
    max_new_tokens: NumFrames = Field(default=None, description="most frames of a clause")
    max_completion_tokens: NumFrames = Field(default=None, description="the same")
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
        """Return `record`; raise ApiError if its options exceed the server's JSON limits."""
        if isinstance(record, dict):
            options_bytes(given_options(record))
        return record

    @property
    def options(self) -> dict[str, Any]:
        """Options that the server checks, under the server's names."""
        given = given_options(vars(self))
        instruct = given.pop("instructions", "")
        return given | {"instruct": instruct} if instruct else given

    def for_server(
        self, profile: ModelProfile, ignored: Ignored, brought: RecordedVoice | None = None
    ) -> dict[str, Any]:
        """Return the arguments of `SpeechClient.speak`.

        Args:
            profile: The served model.
            ignored: Collects the fields that this model does not honour.
            brought: Recorded voice to use instead of the named one.

        Raises:
            ApiError: A value is invalid, or a field is not honoured and `ignored` is strict.
        """
        rates = RATES.get(self.response_format)
        if rates is not None and self.sample_rate not in rates:
            raise refused("sample_rate", f"for {self.response_format} one of {rates}", self.sample_rate)
        form = {"encoding": "pcm_s16le", "sample_rate": self.sample_rate, "markup": self.markup}
        options = self._honoured(profile, ignored) | form
        return options | {"voice": brought or find_voice(profile, self.voice_name)}

    def _honoured(self, profile: ModelProfile, ignored: Ignored) -> dict[str, Any]:
        """Return the options that the model supports; add the others to `ignored`."""
        options = self.options
        for name in FAMILY_OPTIONS:
            if name in options and name not in profile.options:
                field = "instructions" if name == "instruct" else name
                ignored.add(field, f"nothing: {profile.family!r} does not take it", options.pop(name))
        if "language" in options:
            options |= {"language": language_name(profile, options["language"])}
            if options["language"] == AUTO:
                del options["language"]
        if self.non_streaming_mode is not None and "text_mode" in profile.options:
            options.setdefault("text_mode", "whole" if self.non_streaming_mode else "streaming")
        # without streamed text input, the model reads the whole text before its first frame
        elif self.non_streaming_mode is False:
            ignored.add("non_streaming_mode", f"true or none: {profile.family!r} reads the whole text first", False)
        self._check_task_type(profile, ignored)
        return options | self._length(profile, options.get("max_audio_s"), ignored)

    def _check_task_type(self, profile: ModelProfile, ignored: Ignored) -> None:
        """Ignore a `task_type` that is not this model's way of choosing a voice."""
        clones = "audio" in find_task(profile, ("tts",), "speak a text as it stands").system
        designs = "instruct" in profile.options and not clones and not profile.voices
        ways = {"Base": clones, "CustomVoice": bool(profile.voices), "VoiceDesign": designs}
        if self.task_type is not None and not ways[self.task_type]:
            known = [way for way, is_there in ways.items() if is_there]
            ignored.add("task_type", f"{' or '.join(known) or 'none'} of {profile.family!r}", self.task_type)

    def _length(self, profile: ModelProfile, max_audio_s: Any, ignored: Ignored) -> dict[str, float]:
        """Return `max_audio_s` for a given number of frames, if it is tighter than the other limits."""
        limits = {name: limit for name in FRAME_LIMITS if (limit := getattr(self, name)) is not None}
        if not limits:
            return {}
        longest_s = find_task(profile, ("tts",), "speak a text as it stands").max_speech_s
        if not profile.frame_rate or not longest_s:
            for name, limit in limits.items():
                ignored.add(name, f"none: the server does not tell the frame rate of {profile.family!r}", limit)
            return {}
        seconds = min(limits.values()) / profile.frame_rate
        is_tighter = seconds < (max_audio_s if isinstance(max_audio_s, int | float) else longest_s)
        return {"max_audio_s": seconds} if is_tighter else {}


class SpeechItem(SpeechOptions):
    """Text to speak, with its options."""

    input: Text


class SpeechRequest(SpeechItem):
    """Text to speak, with its options and the form of the response."""

    stream_format: Literal["audio", "sse"] = "audio"
    timestamps: bool = Field(default=False, description="with `sse`: an event for the words that begin")
