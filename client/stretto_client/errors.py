"""Why an utterance did not arrive.

ClientError
├── RequestRefused      the request cannot be served; the message names field, limit and what came
├── ServerUnavailable   no server there, it went away, or it takes no work now
│   └── ServerFull      it is there, and has as much work as it takes
├── ServerFailed        the server failed on this request, or broke the protocol
├── RequestCancelled    this client, or the server, gave the request up
└── TimedOut            a time-out of this client ran out
"""

import re

import grpc
from tritonclient.grpc import InferenceServerException


class ClientError(Exception):
    """Base of every error of this package; `exit_code` is what the command line returns."""

    exit_code = 1


class RequestRefused(ClientError):
    """The request cannot be served as it is."""

    exit_code = 2


class ServerUnavailable(ClientError):
    """No server, or none that takes work now; trying again later may help."""

    exit_code = 3


class ServerFull(ServerUnavailable):
    """The server has as much work as it takes; there is room again when some of it is done."""


class ServerFailed(ClientError):
    """The server failed on this request."""


class RequestCancelled(ClientError):
    """The request was given up."""

    exit_code = 130


class TimedOut(ClientError):
    """A time-out of this client ran out."""

    exit_code = 4


BY_STATUS: dict[grpc.StatusCode, type[ClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: RequestRefused,
    grpc.StatusCode.NOT_FOUND: RequestRefused,
    grpc.StatusCode.PERMISSION_DENIED: RequestRefused,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ServerFull,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailable,
    grpc.StatusCode.CANCELLED: RequestCancelled,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
}

# An error on a stream is a text without a status. The server's models lead it with its kind; the rest is Triton's.
KINDS: dict[str, type[ClientError]] = {
    "invalid request": RequestRefused,
    "full": ServerFull,
    "unavailable": ServerUnavailable,
    "cancelled": RequestCancelled,
    "failed": ServerFailed,
}
BY_MODEL = re.compile(rf"^(?:in ensemble '[^']*', )?({'|'.join(KINDS)}): (.*)", re.DOTALL)
BROKEN_OFF = "Internal error from Core"  # gRPC's, where a write finds the call ended; why it did is lost
NOT_LOADED = "has no available versions"  # of a model that is there by name: it is being started, or started again
BY_TRITON: dict[str, type[ClientError]] = {
    NOT_LOADED: ServerUnavailable,
    "unexpected shape for input": RequestRefused,
    "data-type is": RequestRefused,
    "unexpected inference input": RequestRefused,
    "is not found": RequestRefused,  # an unknown model
}


def from_text(message: str) -> ClientError:
    """The error of a response that carries one instead of an event."""
    by_model = BY_MODEL.match(message)
    if by_model:
        return KINDS[by_model[1]](by_model[2])
    kind = next((kind for words, kind in BY_TRITON.items() if words in message), ServerFailed)
    return kind(message)


def from_rpc(error: grpc.RpcError, server: str) -> ClientError:
    """The error of a call to `server` (host:port), by its status, with the server's own words."""
    assert isinstance(error, grpc.aio.AioRpcError), error
    return _from_status(error.code(), error.details() or error.code().name, server)


def from_exception(error: InferenceServerException, server: str) -> ClientError:
    """The same of an error that Triton's client has wrapped, with its status as text."""
    name = (error.status() or "").removeprefix("StatusCode.")
    status = next((status for status in grpc.StatusCode if status.name == name), grpc.StatusCode.UNKNOWN)
    return _from_status(status, error.message() or name, server)


def _from_status(status: grpc.StatusCode, message: str, server: str) -> ClientError:
    if status is grpc.StatusCode.UNAVAILABLE and "connect" in message:
        message = f"no server answers at {server} ({message})"
    if message == BROKEN_OFF:
        return ServerUnavailable("the server ended the call while a request was being sent")
    if "message larger than max" in message:  # which a stream without room for it is told with the same status
        return RequestRefused(message)
    kind = ServerUnavailable if NOT_LOADED in message else BY_STATUS.get(status, ServerFailed)
    return kind(message)
