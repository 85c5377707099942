"""Response schemas (as published in `/openapi.json`) and API errors."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NotRequired

from starlette.exceptions import HTTPException
from starlette.responses import Response
from typing_extensions import TypedDict

from stretto_client import ClientError, RequestCancelled, RequestRefused, ServerFull, ServerUnavailable, TimedOut
from stretto_contract import speech_checks
from stretto_contract.finish_reasons import Limit
from stretto_gateway.response_headers import ResponseHeader

# Name of the server that the current task uses, for messages; empty if the gateway has only one.
SERVER: ContextVar[str] = ContextVar("SERVER", default="")
FIELD = re.compile(r"^([a-z_0-9.\[\]]+): ")
RETRY_AFTER_S = 1
OPTIONS = "options"  # field of server requests that contains most other fields
REFUSED = "invalid_request_error"
FAILED = "server_error"


class ApiError(HTTPException):
    """Error response: a status code and OpenAI's `error` object.

    `param` is the request field that caused the error. `retry_after_s` is sent with status 429 and 503.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int = RETRY_AFTER_S,
    ):
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def record(self) -> dict[str, Any]:
        """Return the response body as OpenAI's error object."""
        error_type = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, FAILED if self.status >= 500 else REFUSED
        )
        return {"error": {"message": self.message, "type": error_type, "param": self.param, "code": self.code}}

    def response(self, record: Any = None) -> Response:
        """Return the HTTP response, with `record` or else OpenAI's error object as its body.

        The JSON is ASCII, so that even lone surrogates can be encoded.
        """
        headers: dict[str, str] = (
            {ResponseHeader.RETRY_AFTER: str(self.retry_after_s)} if self.status in (429, 503) else {}
        )
        if self.status == 401:
            headers[ResponseHeader.WWW_AUTHENTICATE] = "Bearer"
        body = json.dumps(self.record() if record is None else record)
        return Response(body, self.status, headers, "application/json")


def refused(param: str, expected: str, got: object) -> ApiError:
    """Return the error for a request field that has an invalid value."""
    return mismatch(param, expected, shown(got))


def mismatch(param: str, expected: str, actual: str) -> ApiError:
    """Return the error for an invalid field; `actual` describes its value, such as the size with the unit."""
    return ApiError(400, f"{param}: expected {expected}, got {actual}", param, "invalid_value")


def shown(got: object) -> str:
    """Return a short representation of a value from a request."""
    text = repr(got)
    return text if len(text) <= 60 else f"{text[:60]}…"


@contextmanager
def error_path(path: str) -> Iterator[None]:
    """Prepend `path` to the field name of an ApiError that is raised in the `with` block."""
    try:
        yield
    except ApiError as error:
        if error.param is None:
            raise
        param = f"{path}.{error.param}"
        message = error.message.removeprefix(f"{error.param}: ")
        raise ApiError(error.status, f"{param}: {message}", param, error.code) from None


def from_client_error(error: ClientError, fields: dict[str, str]) -> ApiError:
    """Return the API error for an exception of the client library.

    Args:
        fields: Request fields, keyed by the server's field names. Fields in the server's `options` are top-level fields
            of the request, unless `options` itself is a key.
    """
    server = f"the speech server {SERVER.get()!r}" if SERVER.get() else "the speech server"
    match error:
        case RequestRefused():
            return _refusal(str(error), fields)
        case ServerFull():
            return ApiError(429, f"{server} is at capacity; try again", code="server_full")
        case ServerUnavailable() | RequestCancelled():
            return ApiError(503, f"{server} accepts no requests now; try again", code="unavailable")
        case TimedOut():
            return ApiError(504, f"{server} did not answer in time", code="timeout")
        case _:
            return ApiError(502, f"{server} failed on this request", code="server_failed")


def _refusal(message: str, fields: dict[str, str]) -> ApiError:
    """Return the server's error with the field's name in the request instead of its name in the server."""
    match = FIELD.match(message)
    if match is None:
        return ApiError(400, message, code="invalid_value")
    name = match[1]
    theirs = name.removeprefix("options.").removeprefix("output.")
    if OPTIONS in fields and theirs != name and name not in fields:
        param = fields[OPTIONS] + name.removeprefix(OPTIONS)
    else:
        param = fields.get(name) or fields.get(theirs, theirs)
    return ApiError(400, f"{param}: {message[match.end() :]}", param, "invalid_value")


Described = dict[int | str, dict[str, Any]]  # the `responses` argument of FastAPI's routes


class ErrorFields(TypedDict):
    """OpenAI's error object. `param` is the request field that caused the error."""

    message: str
    type: Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


class ErrorAnswer(TypedDict):
    """Response to a failed request."""

    error: ErrorFields


class Talks(TypedDict):
    """Task that answers the turns of a conversation.

    `needs` lists the parts that a user turn must have, and `also` lists the parts that it may have in addition.
    `speaks` is true if replies are audio.
    """

    task: str
    needs: list[str]
    also: list[str]
    speaks: bool


class NamedId(TypedDict):
    """Id that a request may name, with its display name."""

    id: str
    name: str


class Model(TypedDict):
    """OpenAI's model object, with additional properties.

    `root` repeats the id, because `vllm bench serve` reads it if no model is specified. `voices` has the model's voices
    as objects, because clients of Speaches read their `name`. `sample_rate` is the codec's sample rate in Hz.
    `takes_role` is true if full-duplex sessions accept a role as instructions. `parent` is the model of a LoRA adapter,
    whose `root` is its folder.
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
    takes_role: bool
    parent: NotRequired[str]


class Health(TypedDict):
    """Readiness and the served model. Fields of the model are missing if the server does not report them.

    `model` is its name, `revision` the commit of its release, `configuration` the SHA-256 of the server's version,
    options and configuration files, and `weights` that of the names, sizes and times of the checkpoint's files.
    `numerics` describes what determines the server's rounding: its GPUs or processor, and versions of libraries. If the
    gateway has several servers, `servers` has the same for each, and one ready server is enough.
    """

    status: Literal["ready", "not ready"]
    model: NotRequired[str]
    revision: NotRequired[str]
    configuration: NotRequired[str]
    weights: NotRequired[str]
    numerics: NotRequired[str]
    servers: NotRequired[dict[str, "Health"]]


class ListedVoice(NamedId):
    """Voice that a request may name.

    `preview` is the path of a sentence in it. `language`, `gender` and `description` are empty if unknown.
    """

    preview: str
    language: str
    gender: str
    description: str


class Models(TypedDict):
    """Models of all servers that accept requests. `calls` is true if the gateway has calls over WebRTC."""

    object: Literal["list"]
    data: list[Model]
    calls: bool


class SpeechModels(TypedDict):
    """Speech and transcription models, in the format that Open WebUI reads."""

    object: Literal["list"]
    models: list[NamedId]


class Voice(TypedDict):
    """Voice that a caller has added."""

    id: str
    object: Literal["audio.voice"]
    type: Literal["audio_sample"]
    name: str
    consent: str
    ref_text: str
    created_at: int
    language: str
    gender: str
    description: str


class Voices(TypedDict):
    """All voices that a request may name.

    `voices` contains the model's voices and the caller's own voices. `names` contains only the model's voices.
    `aliases` contains the voice that each alias selects. `form` lists the fields of a request that adds a voice; it is
    empty if voices cannot be added. `data` contains the caller's own voices with all fields.
    """

    object: Literal["list"]
    voices: list[ListedVoice]
    names: list[str]
    aliases: dict[str, str | None]
    form: list[str]
    data: list[Voice]


class DeletedVoice(TypedDict):
    """Confirmation that a voice has been deleted."""

    id: str
    object: Literal["audio.voice.deleted"]
    deleted: Literal[True]


class SpeechFault(TypedDict):
    """Fault of speech, and the time at which it begins, in seconds of the model's audio, before `speed`."""

    fault: speech_checks.Fault
    start_s: float


class SpokenItem(TypedDict):
    """Audio for one text in a batch.

    `audio_data` is the file in base64; it may lack `untimed_words`. `finish_reason` is present if a limit
    ended the audio, `receipt`, a flattened JSON Web Signature, if the gateway signs receipts.
    """

    index: int
    status: Literal["success"]
    audio_data: str
    media_type: str
    untimed_words: NotRequired[list[str]]
    finish_reason: NotRequired[Limit]
    faults: NotRequired[list[SpeechFault]]
    redrawn: NotRequired[int]
    unchecked: NotRequired[list[speech_checks.Unchecked]]
    transcripts: NotRequired[list[str]]
    receipt: NotRequired[dict[str, str]]


class FailedItem(TypedDict):
    """Error for one text in a batch."""

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


class PublicKey(TypedDict):
    """Public key that checks receipts, as a JSON Web Key (RFC 8037)."""

    alg: str
    crv: str
    kid: str
    kty: str
    use: str
    x: str


class SpeechOutcome(TypedDict):
    """Outcome of a speech response.

    Attributes:
        status: `incomplete` if a limit ended the audio.
        bytes: Size of the audio or events that were sent.
        error: Message if it failed.
        finish_reason: What ended the audio, if `incomplete` or `cancelled`.
    """

    id: str
    status: Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]
    bytes: int
    error: str | None
    finish_reason: NotRequired[Limit | Literal["cancelled"]]


Measure = Literal["requests", "characters", "input_audio_s", "output_audio_s"]
Period = Literal["minute", "day"]


class CeilingState(TypedDict):
    """Ceiling on the use of a key, and the amount used in the current period."""

    measure: Measure
    period: Period
    amount: int
    used: float
    resets_in_s: int


class KeyUsage(TypedDict):
    """Use of the gateway by a key since the gateway's start.

    Attributes:
        key: Beginning of the key's SHA-256 digest, which names the key in metrics; `everybody` if there are no keys.
        since: Start of the gateway, in seconds since 1970.
        requests: Number of utterances, replies and transcriptions.
        refused: Number of requests refused because of a ceiling, or because too many requests waited for a slot.
        characters: Length of all texts to speak.
        input_audio_s: Duration of all recordings in completed requests, in seconds.
        output_audio_s: Duration of all generated audio, in seconds.
    """

    object: Literal["usage"]
    key: str
    since: int
    requests: int
    refused: int
    characters: int
    input_audio_s: float
    output_audio_s: float
    ceilings: list[CeilingState]


class TokenUsage(TypedDict):
    """Number of prompt rows, and total number of generated text tokens and audio frames."""

    type: Literal["tokens"]
    input_tokens: int
    output_tokens: int
    total_tokens: int


class PlainText(TypedDict):
    """Transcript of a recording.

    `finish_reason` is present if a limit ended the text.
    """

    text: str
    usage: NotRequired[TokenUsage]
    finish_reason: NotRequired[Limit]


class TextSegment(TypedDict):
    """Part of a transcript, with start and end in seconds.

    `unmeasured` lists the fields that no model reports. Their values have no meaning: 0, or no tokens.
    """

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    unmeasured: list[str]


class TranscribedWord(TypedDict):
    """Word with its times in the recording, in seconds."""

    word: str
    start: float
    end: float


class TimedText(TypedDict):
    """Transcript in the `verbose_json` format.

    `words` is present if it was requested and the server has an aligner, and `finish_reason` if a limit ended the text.
    """

    task: Literal["transcribe", "translate"]
    language: str
    duration: float
    text: str
    segments: list[TextSegment]
    words: NotRequired[list[TranscribedWord]]
    finish_reason: NotRequired[Limit]


class SpokenSegment(TypedDict):
    """Part of a transcript by one speaker, with start and end in seconds."""

    type: Literal["transcript.text.segment"]
    id: str
    start: float
    end: float
    text: str
    speaker: str


class DiarizedText(TypedDict):
    """Transcript in the `diarized_json` format; `finish_reason` is present if a limit ended the text."""

    task: Literal["transcribe"]
    duration: float
    text: str
    segments: list[SpokenSegment]
    usage: dict[str, Any]
    finish_reason: NotRequired[Limit]


class SpokenReply(TypedDict):
    """Reply as audio. `data` is the file in base64."""

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
    """The only choice in a completion."""

    index: int
    message: ReplyMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None


class ChatUsage(TypedDict):
    """Number of prompt rows, and total number of generated text tokens and audio frames."""

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
    """Short-lived key for the realtime API.

    `session` is OpenAI's session object. `stretto_ignored` lists fields without effect.
    """

    value: str
    expires_at: int
    session: dict[str, Any]
    stretto_ignored: NotRequired[list[str]]


ERRORS: Described = {
    "4XX": {"model": ErrorAnswer, "description": "Error message that names the invalid field"},
    "5XX": {"model": ErrorAnswer, "description": "Reason why there is no response now"},
}
TEXT = {"schema": {"type": "string"}}
FILE = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}


def described(what: str, *media_types: str, model: Any = None, schema: dict[str, Any] = TEXT) -> Described:
    """Return the OpenAPI description of a response with status 200; `model` is the schema of its JSON, if any."""
    description: dict[str, Any] = {"description": what, "content": dict.fromkeys(media_types, schema)}
    return {200: description if model is None else description | {"model": model}}
