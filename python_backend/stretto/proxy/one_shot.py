"""One-shot replies: all responses of a decoupled model to one request, joined to a single response.

Outside a stream, Triton answers only requests for models that are not decoupled.
"""

import re
from contextlib import ExitStack

import numpy as np
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse

from stretto.errors import FULL, INVALID, UNAVAILABLE
from stretto.proxy.infer_request import MAX_ID, BadRequest
from stretto_contract.limits import FairLimit

MAX_HELD_BYTES = 256 << 20  # samples of all unfinished replies
MAX_REPLY_BYTES = 16 << 20  # 175 s at 24 kHz; as JSON five times as much
FAILED = "failed"
# Triton and its ensembles put the request and the ensemble before the message of a model.
MESSAGE = re.compile(
    rf"(?:\[request id: [^]]{{0,{MAX_ID}}}\] )?(?:in ensemble '\w+', )?"
    rf"({INVALID}|{FULL}|{UNAVAILABLE}|{FAILED}): (.*)",
    re.DOTALL,
)


class OneShotReply:
    """Samples of one reply, as its responses arrive.

    Args:
        request: The request, without tensor contents.
        held: Fair limit of the bytes of all unfinished replies.
        slot: Releases this reply's bytes in `held` when it is closed.
    """

    def __init__(self, request: ModelInferRequest, held: FairLimit, host: str, slot: ExitStack) -> None:
        self._request = request
        self._held = held
        self._host = host
        self._slot = slot
        self._parts = list[bytes]()
        self._num_bytes = 0
        self._output = ""

    def add(self, response: bytes) -> None:
        """Add the samples of a serialised ModelStreamInferResponse with at most one tensor."""
        came = ModelStreamInferResponse.FromString(response)
        if came.error_message:
            raise self._failure(came.error_message)
        for output, content in zip(came.infer_response.outputs, came.infer_response.raw_output_contents, strict=True):
            self._output = output.name
            self._hold(len(content))
            self._parts.append(content)

    def _failure(self, message: str) -> BadRequest:
        match = MESSAGE.fullmatch(message)
        category, text = (match[1], match[2]) if match else (FAILED, message)
        return BadRequest(text, self._request.id, category)

    def _hold(self, num_bytes: int) -> None:
        if self._num_bytes + num_bytes > MAX_REPLY_BYTES:
            expected = f"{self._output}: expected at most {MAX_REPLY_BYTES} bytes in one response, got more"
            raise BadRequest(f"{expected}; use a stream", self._request.id)
        if not self._held.has_free(self._host, num_bytes):
            raise BadRequest(
                f"{self._held.held} bytes of unfinished replies are held (limit {self._held.limit}); use a stream",
                self._request.id,
                FULL,
            )
        self._num_bytes += num_bytes
        self._held.acquire(self._host, num_bytes)
        self._slot.callback(self._held.release, self._host, num_bytes)

    def joined(self) -> ModelInferResponse:
        """Return the complete reply: one tensor, float32 [1, n]."""
        if not self._output:
            raise BadRequest("the reply has no samples", self._request.id, FAILED)
        content = b"".join(self._parts)
        request = self._request
        response = ModelInferResponse(id=request.id, model_name=request.model_name, model_version="1")
        size = len(content) // np.dtype(np.float32).itemsize
        response.outputs.add(name=self._output, datatype="FP32", shape=[1, size])
        response.raw_output_contents.append(content)
        return response


def check_outputs(request: ModelInferRequest) -> None:
    """Raise BadRequest if a one-shot request asks for its samples in shared memory."""
    for output in request.outputs:
        if "shared_memory_region" in output.parameters:
            expected = f"outputs.{output.name}: expected no shared memory outside a stream"
            raise BadRequest(f"{expected}, got a region", request.id)
