"""Client of a request: host, disconnect state, and error responses."""

import re
import traceback
from typing import Any

import triton_python_backend_utils as pb_utils

from stretto.disconnects import HOST, STREAM, Disconnects
from stretto.errors import FULL, INVALID, UNAVAILABLE, Cancelled, Closing, InvalidRequest, Overloaded, incident
from stretto.triton_io.flow import DecoderFailed, DecoderRefused, DecoderStalled

MAX_MESSAGE = 300
EXPECTED_ERRORS = (InvalidRequest, Overloaded, Closing, Cancelled, DecoderFailed, DecoderRefused)
# Matches the proxy's parameters in Triton's JSON, so that the JSON need not be parsed for each chunk. Text within other
# values never matches, because its quotes are escaped.
FROM_PROXY = re.compile(rf'"({HOST}|{STREAM})"\s*:\s*"([^"\\]*)"')
CLIENT_ERRORS = (*EXPECTED_ERRORS, DecoderStalled)  # errors whose messages are meant for clients


def failed_response(error: BaseException, subject: str) -> Any:
    """Return a response that contains only the error; internal errors mention the `subject`, a model or utterance.

    The message begins with the kind of error, because Triton's streams transmit an error's code only if the request has
    the header `triton_grpc_error`, which crashes server 2.51.
    """
    code, category = _code_and_kind(error)
    detail = f"{category}: {client_message(error, subject)}"
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(detail[:MAX_MESSAGE], code))


def client_message(error: BaseException, subject: str) -> str:
    """Return the error message for the client; for an internal error, only the id under which it is logged."""
    return str(error) if isinstance(error, CLIENT_ERRORS) else f"{subject}: {incident(error)}"


def log_failure(error: BaseException, subject: str) -> None:
    """Log an error with its traceback, unless it is an expected one."""
    if not isinstance(error, EXPECTED_ERRORS):
        incident(error)
        pb_utils.Logger.log_error(f"{subject}: " + "".join(traceback.format_exception(error)))


def refuse(sender: Any, error: BaseException, subject: str) -> None:
    """End a request with an error; log the error if it is internal."""
    log_failure(error, subject)
    sender.send(failed_response(error, subject), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _code_and_kind(error: BaseException) -> tuple[Any, str]:
    match error:  # not a module-level table, because the stub fills `pb_utils` only after our modules are imported
        case InvalidRequest() | DecoderRefused():
            return pb_utils.TritonError.INVALID_ARG, INVALID
        case Overloaded():
            return pb_utils.TritonError.UNAVAILABLE, FULL
        case Closing():
            return pb_utils.TritonError.UNAVAILABLE, UNAVAILABLE
        case Cancelled():
            return pb_utils.TritonError.CANCELLED, "cancelled"
    return pb_utils.TritonError.INTERNAL, "failed"


class Caller:
    """Client of a request.

    Args:
        disconnects: Client-disconnect flags set by the proxy; None if there is no proxy.

    Attributes:
        host: Client's host as reported by the proxy; '' if there is no proxy.
    """

    def __init__(self, request: Any, disconnects: Disconnects | None = None) -> None:
        parameters = dict(FROM_PROXY.findall(request.parameters()))
        self.sender = request.get_response_sender()
        self.host = parameters.get(HOST, "")
        self._disconnects = disconnects
        self._stream = _number(parameters.get(STREAM))

    @property
    def is_flagged(self) -> bool:
        """True if the proxy has reported that the client disconnected."""
        return self._disconnects is not None and self._stream > 0 and self._disconnects.has(self._stream)

    def has_disconnected(self) -> bool:
        """Return True if the client has disconnected, according to the proxy or to Triton.

        This must not be called once the request has been answered, because Triton then frees the data read here.
        """
        return self.is_flagged or self.sender.is_cancelled()


def _number(value: object) -> int:
    """Parse the proxy's stream number; return 0 if it is missing or invalid."""
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) <= 19 else 0
