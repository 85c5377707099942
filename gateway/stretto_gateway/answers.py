"""What answers hold, field by field, as `/openapi.json` tells it."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

Described = dict[int | str, dict[str, Any]]  # what FastAPI calls `responses`


class ErrorFields(TypedDict):
    """OpenAI's. param: the field of the request that it is about."""

    message: str
    type: Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


class ErrorAnswer(TypedDict):
    """Whatever is not answered."""

    error: ErrorFields


class Talks(TypedDict):
    """A task that answers turns. needs, also: what a turn has to hold, and what it may hold besides."""

    task: str
    needs: list[str]
    also: list[str]
    speaks: bool


class Model(TypedDict):
    """OpenAI's model, and what more there is to tell. sample_rate: of its codec, in Hz."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    tasks: list[str]
    conversations: list[Talks]
    voices: list[str]
    sample_rate: int
    times_words: bool


class Models(TypedDict):
    """All of them: one."""

    object: Literal["list"]
    data: list[Model]


class NamedId(TypedDict):
    """A value of a field, and the name that people are shown."""

    id: str
    name: str


class SpeechModels(TypedDict):
    """Models of speech and transcription, as Open WebUI lists them."""

    object: Literal["list"]
    models: list[NamedId]


class Voice(TypedDict):
    """One that a caller has brought."""

    id: str
    object: Literal["audio.voice"]
    name: str
    consent: str
    ref_text: str
    created_at: int


class Voices(TypedDict):
    """All voices that a request may name.

    voices: the model's and the caller's own. names: the model's. titles: of the model's voices, for people.
    aliases: the voice that each of OpenAI's names means.
    form: fields of a request that brings a voice; empty if none are taken. data: the caller's own, in full.
    """

    object: Literal["list"]
    voices: list[NamedId]
    names: list[str]
    titles: dict[str, str]
    aliases: dict[str, str | None]
    form: list[str]
    data: list[Voice]


class DeletedVoice(TypedDict):
    """One that is kept no longer."""

    id: str
    object: Literal["audio.voice.deleted"]
    deleted: Literal[True]


class SpokenItem(TypedDict):
    """The sound of a text of a batch. audio_data: the file, as base64."""

    index: int
    status: Literal["success"]
    audio_data: str
    media_type: str


class FailedItem(TypedDict):
    """Why a text of a batch has none."""

    index: int
    status: Literal["error"]
    error: str


class Batch(TypedDict):
    """The results, in the order of the items."""

    id: str
    results: list[SpokenItem | FailedItem]
    total: int
    succeeded: int
    failed: int


class TokenUsage(TypedDict):
    """What was read and made, in rows of the model."""

    type: Literal["tokens"]
    input_tokens: int
    output_tokens: int
    total_tokens: int


class PlainText(TypedDict):
    """What is said in a recording."""

    text: str
    usage: NotRequired[TokenUsage]


class TextSegment(TypedDict):
    """A part of it, with its times in seconds."""

    id: int
    start: float
    end: float
    text: str


class TimedText(TypedDict):
    """The same as `verbose_json`."""

    task: Literal["transcribe", "translate"]
    language: str
    duration: float
    text: str
    segments: list[TextSegment]


class SpokenReply(TypedDict):
    """A reply that is sound. data: the file, as base64."""

    id: str
    expires_at: int
    data: str
    transcript: str


class ReplyMessage(TypedDict):
    """A reply: its text, or its sound."""

    role: Literal["assistant"]
    content: str | None
    audio: NotRequired[SpokenReply]


class Choice(TypedDict):
    """The one that there is."""

    index: int
    message: ReplyMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None


class ChatUsage(TypedDict):
    """What was read and made, in rows of the model."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(TypedDict):
    """OpenAI's chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage


class ClientSecret(TypedDict):
    """Short-lived key to the realtime API. session: OpenAI's object. stretto_ignored: fields without effect."""

    value: str
    expires_at: int
    session: dict[str, Any]
    stretto_ignored: NotRequired[list[str]]


ERRORS: Described = {
    "4XX": {"model": ErrorAnswer, "description": "What is wrong with the request, by the name of the field"},
    "5XX": {"model": ErrorAnswer, "description": "Why there is no answer now"},
}
TEXT = {"schema": {"type": "string"}}
FILE = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}


def described(what: str, *media_types: str, model: Any = None, schema: dict[str, Any] = TEXT) -> Described:
    """An answer with status 200: as JSON of `model`, where there is one, and as each of the media types."""
    told: dict[str, Any] = {"description": what, "content": dict.fromkeys(media_types, schema)}
    return {200: told if model is None else told | {"model": model}}
