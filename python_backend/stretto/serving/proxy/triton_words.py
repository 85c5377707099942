"""What Triton says of models that have ended, in the words in which the launcher says it."""

import re
from collections.abc import Callable

import grpc
from tritonclient.grpc.service_pb2 import ModelStreamInferResponse

from stretto.serving.proxy.gate import Restarting

STUB_HAS_ENDED = "' is not healthy."  # in Triton's words: "Stub process 'acoustic_decoder_0_0' is not healthy."
# All of such a message, so that nobody's text can be taken for one; the group is the model.
GIVEN_UP = re.compile(
    r"(?:\[request id: [^]]{0,128}\] )?(?:in ensemble '\w+', )?Stub process '(\w+)_\d+_\d+' is not healthy\."
)
GONE = ("unix:", "ocket closed", "onnection reset", "roken pipe")  # in gRPC's words for a server that is not there
BROKEN_OFF = "Internal error from Core"  # gRPC's, where a write finds the call ended; why it did is lost

Tell = Callable[[str], None]  # the launcher, of a model whose stub Triton takes for dead


def retold(response: bytes, give_up: Tell) -> bytes:
    """A response, as it is but where Triton answers before the launcher knows that a stub has ended."""
    if STUB_HAS_ENDED.encode() not in response:
        return response
    retold = ModelStreamInferResponse.FromString(response)
    retold.error_message = _said_of_stubs(retold.error_message, give_up)
    return retold.SerializeToString()


def _said_of_stubs(message: str, give_up: Tell) -> str:
    """An error of Triton's, in our words where it is about a stub that Triton takes for dead."""
    if found := GIVEN_UP.fullmatch(message):
        give_up(found[1])
    return str(Restarting()) if message.endswith(STUB_HAS_ENDED) else message


def told(error: grpc.aio.AioRpcError, give_up: Tell) -> tuple[grpc.StatusCode, str]:
    """The status and the words of a call to Triton that ended with an error."""
    code, details = error.code(), _said_of_stubs(error.details() or "", give_up)
    is_gone = code is grpc.StatusCode.UNAVAILABLE and any(words in details for words in GONE)
    if is_gone or details == BROKEN_OFF:
        return grpc.StatusCode.UNAVAILABLE, "unavailable: the server is starting"
    return code, details
