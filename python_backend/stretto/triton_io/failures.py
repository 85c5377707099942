"""How an exception is answered and whether it is logged."""

import traceback
from typing import Any

import triton_python_backend_utils as pb_utils

from stretto.errors import Cancelled, Closing, InvalidRequest, Overloaded, incident
from stretto.triton_io.flow import DecoderFailed, DecoderRefused, DecoderStalled

MAX_MESSAGE = 300
NO_NEWS = (InvalidRequest, Overloaded, Closing, Cancelled, DecoderFailed, DecoderRefused)
TOLD = (*NO_NEWS, DecoderStalled)  # their texts are written for clients


def failed_response(error: BaseException, whose: str) -> Any:
    """A response that carries nothing but the error: its kind and a short message.

    The kind leads the message, because Triton's streams carry the text of an error and not its code. (They carry
    the code for clients that send the header `triton_grpc_error`, with which server 2.51 crashes.)
    """
    code, kind = _code_and_kind(error)
    detail = f"{kind}: {told(error, whose)}"
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(detail[:MAX_MESSAGE], code))


def told(error: BaseException, whose: str) -> str:
    """What a client is told of `error`: of a failure of ours no more than the name that the log knows it by."""
    return str(error) if isinstance(error, TOLD) else f"{whose}: {incident(error)}"


def log_failure(error: BaseException, whose: str) -> None:
    """Log, with its traceback, what is ours; a caller's mistakes, refusals and what is logged already are no news."""
    if not isinstance(error, NO_NEWS):
        incident(error)
        pb_utils.Logger.log_error(f"{whose}: " + "".join(traceback.format_exception(error)))


def refuse(sender: Any, error: BaseException, whose: str) -> None:
    """Log the failure if it is ours, and end the request with it."""
    log_failure(error, whose)
    sender.send(failed_response(error, whose), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _code_and_kind(error: BaseException) -> tuple[Any, str]:
    match error:  # the stub fills `pb_utils` only after our modules are imported: no table of these at their top
        case InvalidRequest() | DecoderRefused():
            return pb_utils.TritonError.INVALID_ARG, "invalid request"
        case Overloaded():
            return pb_utils.TritonError.UNAVAILABLE, "full"
        case Closing():
            return pb_utils.TritonError.UNAVAILABLE, "unavailable"
        case Cancelled():
            return pb_utils.TritonError.CANCELLED, "cancelled"
    return pb_utils.TritonError.INTERNAL, "failed"
