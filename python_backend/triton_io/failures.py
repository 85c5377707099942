"""How an exception is answered and whether it is logged."""

import traceback
from typing import Any

import triton_python_backend_utils as pb_utils

from python_backend.errors import Cancelled, InvalidRequest, Overloaded

MAX_MESSAGE = 300


def failed_response(error: BaseException, whose: str) -> Any:
    """A response that carries nothing but the error: to the caller, its kind and a short message."""
    code = _code(error)
    message = str(error)
    if code is None:
        code, message = pb_utils.TritonError.INTERNAL, f"{whose}: {type(error).__name__}: {error}"
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message[:MAX_MESSAGE], code))


def log_failure(error: BaseException, whose: str) -> None:
    """Log, with its traceback, what is ours; the caller's mistakes, refusals and cancellations are no news."""
    if _code(error) is None:
        pb_utils.Logger.log_error(f"{whose}: " + "".join(traceback.format_exception(error)))


def refuse(sender: Any, error: BaseException, whose: str) -> None:
    """Log the failure if it is ours, and end the request with it."""
    log_failure(error, whose)
    sender.send(failed_response(error, whose), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _code(error: BaseException) -> Any | None:
    match error:  # the stub fills `pb_utils` only after our modules are imported: no table of these at their top
        case InvalidRequest():
            return pb_utils.TritonError.INVALID_ARG
        case Overloaded():
            return pb_utils.TritonError.UNAVAILABLE
        case Cancelled():
            return pb_utils.TritonError.CANCELLED
    return None
