"""Schemas of the responses, as published in `/openapi.json`."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

Described = dict[int | str, dict[str, Any]]  # the `responses` argument of FastAPI's routes


class ErrorFields(TypedDict):
    """OpenAI's error object. `param`: the request field that caused the error."""

    message: str
    type: Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


class ErrorAnswer(TypedDict):
    """Response to a request that failed."""

    error: ErrorFields


class Talks(TypedDict):
    """Task that answers turns of a conversation.

    `needs`: parts that a user's turn must have. `also`: further parts that it may have. `speaks`: true if replies are
    audio.
    """

    task: str
    needs: list[str]
    also: list[str]
    speaks: bool


class NamedId(TypedDict):
    """Value of a field, with a name to show to users."""

    id: str
    name: str


class Model(TypedDict):
    """OpenAI's model object, with further properties.

    root: the id once more, which `vllm bench serve` reads if it is given no model. voices: of the model, as objects,
    because Speaches' clients read their `name`. sample_rate: of its codec, in Hz.
    """

    id: str
    root: str
    object: Literal["model"]
    created: int
    owned_by: str
    tasks: list[str]
    conversations: list[Talks]
    voices: list[NamedId]
    sample_rate: int
    times_words: bool


class Models(TypedDict):
    """List of models, which has one entry."""

    object: Literal["list"]
    data: list[Model]


class SpeechModels(TypedDict):
    """Models of speech and transcription, in the form that Open WebUI reads."""

    object: Literal["list"]
    models: list[NamedId]


class Voice(TypedDict):
    """Voice that a caller has added."""

    id: str
    object: Literal["audio.voice"]
    name: str
    consent: str
    ref_text: str
    created_at: int


class Voices(TypedDict):
    """All voices that a request may name.

    `voices`: the model's voices and the caller's own. `names`: the model's voices. `titles`: display names of the
    model's voices. `aliases`: the voice that each voice alias selects. `form`: fields of a request that
    adds a voice, empty if voices cannot be added. `data`: the caller's own voices with all their fields.
    """

    object: Literal["list"]
    voices: list[NamedId]
    names: list[str]
    titles: dict[str, str]
    aliases: dict[str, str | None]
    form: list[str]
    data: list[Voice]


class DeletedVoice(TypedDict):
    """Confirmation that a voice has been deleted."""

    id: str
    object: Literal["audio.voice.deleted"]
    deleted: Literal[True]


class SpokenItem(TypedDict):
    """Audio of one text of a batch. `audio_data`: the file, as base64."""

    index: int
    status: Literal["success"]
    audio_data: str
    media_type: str


class FailedItem(TypedDict):
    """Error of one text of a batch."""

    index: int
    status: Literal["error"]
    error: str


class Batch(TypedDict):
    """Results of a batch, in the order of the items."""

    id: str
    results: list[SpokenItem | FailedItem]
    total: int
    succeeded: int
    failed: int


class TokenUsage(TypedDict):
    """Rows of the model: those of the prompt, and generated text tokens and audio frames."""

    type: Literal["tokens"]
    input_tokens: int
    output_tokens: int
    total_tokens: int


class PlainText(TypedDict):
    """Transcript of a recording."""

    text: str
    usage: NotRequired[TokenUsage]


class TextSegment(TypedDict):
    """Part of a transcript, with its start and end in seconds."""

    id: int
    start: float
    end: float
    text: str


class TimedText(TypedDict):
    """Transcript in the `verbose_json` format."""

    task: Literal["transcribe", "translate"]
    language: str
    duration: float
    text: str
    segments: list[TextSegment]


class SpokenReply(TypedDict):
    """Reply as audio. `data`: the file, as base64."""

    id: str
    expires_at: int
    data: str
    transcript: str


class ReplyMessage(TypedDict):
    """Reply as text, or as audio with its transcript."""

    role: Literal["assistant"]
    content: str | None
    audio: NotRequired[SpokenReply]


class Choice(TypedDict):
    """The only choice of a completion."""

    index: int
    message: ReplyMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None


class ChatUsage(TypedDict):
    """Rows of the model: those of the prompt, and generated text tokens and audio frames."""

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
    """Short-lived key to the realtime API.

    `session`: OpenAI's session object. `stretto_ignored`: fields without effect.
    """

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
    """Return the OpenAPI description of a response with status 200.

    Args:
        what: Description of the response.
        media_types: Media types in which it may be sent, besides JSON.
        model: Schema of the JSON form; None if there is none.
        schema: Schema of the other forms.
    """
    told: dict[str, Any] = {"description": what, "content": dict.fromkeys(media_types, schema)}
    return {200: told if model is None else told | {"model": model}}
