"""Errors in ElevenLabs' form, and recognition of the requests that get them."""

from typing import Any

from starlette.responses import Response
from starlette.types import Scope
from typing_extensions import TypedDict

from stretto_gateway.answers import ApiError, Described

KEY_HEADER = b"xi-api-key"
SPEECH = "/v1/text-to-speech/"
MODELS = "/v1/models"  # a path that OpenAI's API has as well
PATHS = (SPEECH, "/v1/voices", "/v2/voices")
# Request fields, keyed by the gateway's own names.
FIELDS = {"input": "text", "voice": "voice_id", "language": "language_code", "speed": "voice_settings.speed"}
SOURCES = {"voice_id": "path", "output_format": "query", "page_size": "query", "next_page_token": "query"}
TYPES = {401: "authentication_error", 403: "authorization_error", 404: "not_found", 429: "rate_limit_error"}


class Detail(TypedDict):
    """Error; `status` repeats `code`, because older clients read it."""

    type: str
    code: str
    status: str
    message: str
    param: str | None
    request_id: str


class Violation(TypedDict):
    """Field with an invalid value; `loc` is its path."""

    loc: list[str]
    msg: str
    type: str


class Failure(TypedDict):
    """Response to a failed request; with status 422, a list of invalid fields."""

    detail: Detail | list[Violation]


ERRORS: Described = {
    "4XX": {"model": Failure, "description": "Error message that names the invalid field"},
    "5XX": {"model": Failure, "description": "Reason why there is no response now"},
}


def has_own_key(scope: Scope) -> bool:
    """Return True if a request has ElevenLabs' header for keys."""
    return any(name == KEY_HEADER for name, _ in scope["headers"])


def is_own(scope: Scope) -> bool:
    """Return True if a request is for ElevenLabs' API."""
    path: str = scope["path"]
    return path.startswith(PATHS) or (path == MODELS and has_own_key(scope))


def translated(error: ApiError) -> ApiError:
    """Return an error with ElevenLabs' names of fields."""
    param = FIELDS.get(error.param or "", error.param)
    original = error.message.replace("Authorization: Bearer KEY", KEY_HEADER.decode())  # in the guard's error
    message = original if param == error.param else f"{param}: {original.removeprefix(f'{error.param}: ')}"
    if param == "voice_id":
        return ApiError(404, message, param, "voice_not_found")
    return ApiError(error.status, message, param, error.code, error.retry_after_s)


def error_response(scope: Scope, original: ApiError) -> Response:
    """Return the response to a failed request: a list with status 422 if a field is invalid, else an object."""
    error = translated(original)
    if error.param is None or error.code not in ("missing", "invalid_value"):
        return failure(scope, error)
    violation: Violation = {
        "loc": [SOURCES.get(error.param, "body"), *error.param.split(".")],
        "msg": error.message.removeprefix(f"{error.param}: "),
        "type": "missing" if error.code == "missing" else "value_error",
    }
    return ApiError(422, error.message).response({"detail": [violation]})


def failure(scope: Scope, error: ApiError) -> Response:
    """Return the response with an object that describes the error."""
    code = error.code or "invalid_request"
    detail: dict[str, Any] = {
        "type": "server_error" if error.status >= 500 else TYPES.get(error.status, "validation_error"),
        "code": code,
        "status": code,
        "message": error.message,
        "param": error.param,
        "request_id": scope.get("state", {}).get("request_id", ""),
    }
    return error.response({"detail": detail})
