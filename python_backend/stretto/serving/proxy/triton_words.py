"""Translation of Triton's errors about ended models into the launcher's messages."""

import re
from collections.abc import Callable

import grpc
from tritonclient.grpc.service_pb2 import ModelStreamInferResponse

from stretto.serving.proxy.gate import Restarting

STUB_HAS_ENDED = "' is not healthy."  # as in "Stub process 'acoustic_decoder_0_0' is not healthy."
# Matches the entire message, so that client text cannot imitate it; the group is the model.
GIVEN_UP = re.compile(
    r"(?:\[request id: [^]]{0,128}\] )?(?:in ensemble '\w+', )?Stub process '(\w+)_\d+_\d+' is not healthy\."
)
GONE = ("unix:", "ocket closed", "onnection reset", "roken pipe")  # parts of gRPC's messages for an unreachable server
BROKEN_OFF = "Internal error from Core"  # gRPC's message for a write to an ended call; the cause is lost

Tell = Callable[[str], None]  # reports a model whose stub Triton considers dead to the launcher


def retold(response: bytes, give_up: Tell) -> bytes:
    """Return a response for the client, in which errors about dead stubs are reworded.

    Triton may report a dead stub before the launcher has noticed it.

    Args:
        response: Serialised ModelStreamInferResponse.
        give_up: Reports the model to the launcher.
    """
    if STUB_HAS_ENDED.encode() not in response:
        return response
    retold = ModelStreamInferResponse.FromString(response)
    retold.error_message = _said_of_stubs(retold.error_message, give_up)
    return retold.SerializeToString()


def _said_of_stubs(message: str, give_up: Tell) -> str:
    """Return an error message, reworded if it is about a stub that Triton considers dead."""
    if found := GIVEN_UP.fullmatch(message):
        give_up(found[1])
    return str(Restarting()) if message.endswith(STUB_HAS_ENDED) else message


def told(error: grpc.aio.AioRpcError, give_up: Tell) -> tuple[grpc.StatusCode, str]:
    """Return the status and message with which to end the client's call.

    Args:
        error: Error of the call to Triton.
        give_up: Reports a model with a dead stub to the launcher.
    """
    code, details = error.code(), _said_of_stubs(error.details() or "", give_up)
    is_gone = code is grpc.StatusCode.UNAVAILABLE and any(words in details for words in GONE)
    if is_gone or details == BROKEN_OFF:
        return grpc.StatusCode.UNAVAILABLE, "unavailable: the server is starting"
    return code, details
