"""Errors in the form of OpenAI's API, and which of them a failure of the server is."""

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
OPTIONS = "options"  # the server's field with most of the others in it
REFUSED, FAILED = "invalid_request_error", "server_error"


class ApiError(HTTPException):
    """An answer with a status and OpenAI's `error` object; `param` is the field of the request that it is about."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(status, message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def record(self) -> dict[str, Any]:
        """The body."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, FAILED if self.status >= 500 else REFUSED
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole answer. Escapes keep what a caller has sent, half of a character even, from ending it."""
        headers = {"retry-after": str(RETRY_AFTER_S)} if self.status in (429, 503) else {}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return Response(json.dumps(self.record()), self.status, headers, "application/json")


def refused(param: str, expected: str, got: object) -> ApiError:
    """The answer to a field that is not what it may be."""
    return ApiError(400, f"{param}: expected {expected}, got {shown(got)}", param, "invalid_value")


def shown(got: object) -> str:
    """What came, in a few characters."""
    text = repr(got)
    return text if len(text) <= 60 else f"{text[:60]}…"


@contextmanager
def within(path: str) -> Iterator[None]:
    """Whatever ApiError the block raises is about a field inside that of `path`."""
    try:
        yield
    except ApiError as error:
        if error.param is None:
            raise
        param, message = f"{path}.{error.param}", error.message.removeprefix(f"{error.param}: ")
        raise ApiError(error.status, f"{param}: {message}", param, error.code) from None


def from_client_error(error: ClientError, fields: dict[str, str]) -> ApiError:
    """What a caller is told of a failure behind the gateway.

    fields: what those of the server are called here. Those of its `options` stand beside the others, unless that has a
    name here, too.
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
    """The server's words, with the field called as the caller calls it."""
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
