"""Exceptions raised by the client.

ClientError
├── RequestRefused      the request cannot be served; the message contains the field, the limit and the value
├── ServerUnavailable   there is no server, the connection was lost, or the server accepts no requests now
│   └── ServerFull      the server is running, but at capacity
├── ServerFailed        the server failed on this request or violated the protocol
├── RequestCancelled    this client, or the server, cancelled the request
└── TimedOut            a timeout of this client expired
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from tritonclient.grpc import InferenceServerException

from stretto_client.console import described, is_of_stream


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Timeouts in seconds: until the first response, between two responses, and for the complete utterance."""

    first_s: float = 30.0
    between_s: float = 15.0
    total_s: float = 300.0

    def __post_init__(self) -> None:
        if not min(self.first_s, self.between_s, self.total_s) > 0:
            raise ValueError(f"timeouts must be > 0 s, got {self}")


class ClientError(Exception):
    """Base class of all errors in this package; `exit_code` is the exit status of the command line."""

    exit_code = 1


class RequestRefused(ClientError):
    """Raised if the request is invalid or the server does not support it."""

    exit_code = 2


class ServerUnavailable(ClientError):
    """Raised if no server currently accepts requests; a later attempt may succeed."""

    exit_code = 3


class ServerFull(ServerUnavailable):
    """Raised if the server is at capacity; it accepts requests again once others have ended."""


class ServerFailed(ClientError):
    """Raised if the server failed on this request."""


class RequestCancelled(ClientError):
    """Raised if the request was cancelled."""

    exit_code = 130


class TimedOut(ClientError):
    """Raised if a timeout of this client expired."""

    exit_code = 4


def exit_status(command: Callable[[], int]) -> int:
    """Run a command; return its exit status, or that of a printed error. Errors of standard streams are raised."""
    try:
        return command()
    except ClientError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (ValueError, OSError) as error:
        if is_of_stream(error):
            raise
        print(f"error: {described(error)}", file=sys.stderr)
        return 2


BY_STATUS: dict[grpc.StatusCode, type[ClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: RequestRefused,
    grpc.StatusCode.NOT_FOUND: RequestRefused,
    grpc.StatusCode.PERMISSION_DENIED: RequestRefused,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ServerFull,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailable,
    grpc.StatusCode.CANCELLED: RequestCancelled,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
}

# An error on a stream is a text without a status. Our models prefix it with the error's kind; Triton does not.
KINDS: dict[str, type[ClientError]] = {
    "invalid request": RequestRefused,
    "full": ServerFull,
    "unavailable": ServerUnavailable,
    "cancelled": RequestCancelled,
    "failed": ServerFailed,
}
BY_MODEL = re.compile(rf"^(?:in ensemble '[^']*', )?({'|'.join(KINDS)}): (.*)", re.DOTALL)
# gRPC's message if a write fails because the call has ended; it hides the actual reason
BROKEN_OFF = "Internal error from Core"
NOT_LOADED = "has no available versions"  # the model exists, but is being started or restarted
BY_TRITON: dict[str, type[ClientError]] = {
    NOT_LOADED: ServerUnavailable,
    "unexpected shape for input": RequestRefused,
    "data-type is": RequestRefused,
    "unexpected inference input": RequestRefused,
    "is not found": RequestRefused,  # an unknown model
}


def from_text(message: str) -> ClientError:
    """Return the exception for a response that contains an error message instead of an event."""
    by_model = BY_MODEL.match(message)
    if by_model:
        return KINDS[by_model[1]](by_model[2])
    error_class = next((error_class for words, error_class in BY_TRITON.items() if words in message), ServerFailed)
    return error_class(message)


def from_rpc(error: grpc.RpcError, server: str) -> ClientError:
    """Return the exception for a failed call to `server` (host:port), according to the call's status."""
    assert isinstance(error, grpc.aio.AioRpcError), error
    return _from_status(error.code(), error.details() or error.code().name, server)


def from_exception(error: InferenceServerException, server: str) -> ClientError:
    """Return the ClientError for an exception from Triton's client, whose text contains the status."""
    name = (error.status() or "").removeprefix("StatusCode.")
    status = next((status for status in grpc.StatusCode if status.name == name), grpc.StatusCode.UNKNOWN)
    return _from_status(status, error.message() or name, server)


def _from_status(status: grpc.StatusCode, message: str, server: str) -> ClientError:
    if status is grpc.StatusCode.UNAVAILABLE and "connect" in message:
        message = f"no server answers at {server} ({message})"
    if message == BROKEN_OFF:
        return ServerUnavailable("the server ended the call while a request was being sent")
    if "message larger than max" in message:  # gRPC uses the same status for this and for a full server
        return RequestRefused(message)
    error_class = ServerUnavailable if NOT_LOADED in message else BY_STATUS.get(status, ServerFailed)
    return error_class(message)
