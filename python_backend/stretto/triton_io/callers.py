"""Origin and disconnect state of a request, and the client message for an exception."""

import re
import traceback
from typing import Any

import triton_python_backend_utils as pb_utils

from stretto.disconnects import HOST, STREAM, Disconnects
from stretto.errors import Cancelled, Closing, InvalidRequest, Overloaded, incident
from stretto.triton_io.flow import DecoderFailed, DecoderRefused, DecoderStalled

MAX_MESSAGE = 300
NO_NEWS = (InvalidRequest, Overloaded, Closing, Cancelled, DecoderFailed, DecoderRefused)
# The proxy's parameters in Triton's JSON, which is not parsed for every chunk. A quote inside another text is escaped.
FROM_PROXY = re.compile(rf'"({HOST}|{STREAM})"\s*:\s*"([^"\\]*)"')
TOLD = (*NO_NEWS, DecoderStalled)  # errors whose texts are meant for clients


def failed_response(error: BaseException, whose: str) -> Any:
    """Return a response with only the error: its kind and a short message.

    The kind precedes the message because Triton's streams carry the text of an error but not its code, except with the
    header `triton_grpc_error`, which crashes server 2.51.
    """
    code, kind = _code_and_kind(error)
    detail = f"{kind}: {client_message(error, whose)}"
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(detail[:MAX_MESSAGE], code))


def client_message(error: BaseException, whose: str) -> str:
    """Return the error message for the client.

    Internal errors expose only the incident id under which they are logged.
    """
    return str(error) if isinstance(error, TOLD) else f"{whose}: {incident(error)}"


def log_failure(error: BaseException, whose: str) -> None:
    """Log internal errors with their traceback; not callers' mistakes, rejections or errors logged before."""
    if not isinstance(error, NO_NEWS):
        incident(error)
        pb_utils.Logger.log_error(f"{whose}: " + "".join(traceback.format_exception(error)))


def refuse(sender: Any, error: BaseException, whose: str) -> None:
    """Log an internal error, and end the request with the error."""
    log_failure(error, whose)
    sender.send(failed_response(error, whose), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _code_and_kind(error: BaseException) -> tuple[Any, str]:
    match error:  # not a module-level table, because the stub fills `pb_utils` only after our modules are imported
        case InvalidRequest() | DecoderRefused():
            return pb_utils.TritonError.INVALID_ARG, "invalid request"
        case Overloaded():
            return pb_utils.TritonError.UNAVAILABLE, "full"
        case Closing():
            return pb_utils.TritonError.UNAVAILABLE, "unavailable"
        case Cancelled():
            return pb_utils.TritonError.CANCELLED, "cancelled"
    return pb_utils.TritonError.INTERNAL, "failed"


class Caller:
    """Client of a request, with its disconnect state from the response sender and the proxy's flags.

    Attributes:
        host: Host that the request comes from, as reported by the proxy; '' without a proxy.
    """

    def __init__(self, request: Any, departures: Disconnects | None = None) -> None:
        parameters = dict(FROM_PROXY.findall(request.parameters()))
        self.sender = request.get_response_sender()
        self.host = parameters.get(HOST, "")
        self._disconnects, self._stream = departures, _number(parameters.get(STREAM))

    @property
    def is_marked(self) -> bool:
        """Return True if the proxy has reported a disconnect; cheap."""
        return self._disconnects is not None and self._stream > 0 and self._disconnects.has(self._stream)

    def has_left(self) -> bool:
        """Return True if the client has disconnected.

        Never call this for an answered request: Triton frees its data.
        """
        return self.is_marked or self.sender.is_cancelled()


def _number(said: object) -> int:
    """Return the number of the proxy's stream of a request; 0 without a proxy."""
    return int(said) if isinstance(said, str) and said.isdecimal() and len(said) <= 19 else 0
