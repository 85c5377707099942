"""Errors in the form of OpenAI's API, and their mapping from the client library's exceptions."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from stretto_client import ClientError, RequestCancelled, RequestRefused, ServerFull, ServerUnavailable, TimedOut

FIELD = re.compile(r"^([a-z_0-9.\[\]]+): ")
RETRY_AFTER_S = 1
OPTIONS = "options"  # the server's field that contains most of the others
REFUSED, FAILED = "invalid_request_error", "server_error"


class ApiError(HTTPException):
    """Response with a status code and OpenAI's `error` object; `param` is the request field that caused it."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(status, message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def record(self) -> dict[str, Any]:
        """Return the response body."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, FAILED if self.status >= 500 else REFUSED
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """Return the HTTP response. JSON escapes keep the caller's text, even a lone surrogate, from breaking it."""
        headers = {"retry-after": str(RETRY_AFTER_S)} if self.status in (429, 503) else {}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return Response(json.dumps(self.record()), self.status, headers, "application/json")


def refused(param: str, expected: str, got: object) -> ApiError:
    """Return the error for a field with a wrong value."""
    return ApiError(400, f"{param}: expected {expected}, got {shown(got)}", param, "invalid_value")


def shown(got: object) -> str:
    """Return a short representation of a received value."""
    text = repr(got)
    return text if len(text) <= 60 else f"{text[:60]}…"


@contextmanager
def within(path: str) -> Iterator[None]:
    """Prefix the field of an ApiError that the block raises with `path`."""
    try:
        yield
    except ApiError as error:
        if error.param is None:
            raise
        param, message = f"{path}.{error.param}", error.message.removeprefix(f"{error.param}: ")
        raise ApiError(error.status, f"{param}: {message}", param, error.code) from None


def from_client_error(error: ClientError, fields: dict[str, str]) -> ApiError:
    """Return the API error for a failure of the server.

    Args:
        error: The client library's exception.
        fields: Caller's field names by the server's. Fields of the server's `options` are top-level fields for the
            caller, unless `options` itself is mapped.
    """
    match error:
        case RequestRefused():
            return _refusal(str(error), fields)
        case ServerFull():
            return ApiError(429, "the speech server has as much work as it takes; try again", code="server_full")
        case ServerUnavailable() | RequestCancelled():
            return ApiError(503, "the speech server takes no requests now; try again", code="unavailable")
        case TimedOut():
            return ApiError(504, "the speech server did not answer in time", code="timeout")
        case _:
            return ApiError(502, "the speech server failed on this request", code="server_failed")


def _refusal(message: str, fields: dict[str, str]) -> ApiError:
    """Return the server's message, with the field renamed to the caller's name for it."""
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
