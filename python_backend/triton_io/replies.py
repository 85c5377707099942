"""The decoder's answer to one chunk: sent to the client, and noted in the utterance's flow slot."""

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from python_backend.triton_io.failures import failed_response
from python_backend.triton_io.flow import FlowSlot
from python_backend.triton_io.schema import EVENT, PCM
from python_backend.triton_io.tensors import array_tensor, text_tensor


class ChunkReply:
    """Answers one chunk exactly once: by `send` or by `fail`. Either carries the final flag."""

    def __init__(self, request: Any, slot: FlowSlot, utterance: str, index: int) -> None:
        self._sender = request.get_response_sender()
        self._slot = slot
        self._utterance = utterance
        self._index = index
        self._is_answered = False

    def send(self, pcm: np.ndarray | None, event: dict[str, Any]) -> None:
        """Send samples [n] float32, or none, and their event."""
        tensors = [] if pcm is None else [array_tensor(PCM, pcm)]
        self._answer(pb_utils.InferenceResponse([*tensors, text_tensor(EVENT, json.dumps(event))]))
        self._slot.acknowledge(self._index)

    def fail(self, error: BaseException) -> None:
        """Answer with the error, which the decoder has logged, and end the utterance."""
        self._slot.cancel()
        self._answer(failed_response(error, f"utterance {self._utterance}"))

    def is_cancelled(self) -> bool:
        """Whether the client has gone away, or the utterance is over for another reason; told to the sender, too."""
        if self._sender.is_cancelled():
            self._slot.cancel()
        return self._slot.is_cancelled

    def _answer(self, response: Any) -> None:
        assert not self._is_answered, f"utterance {self._utterance}: chunk {self._index} is answered twice"
        self._is_answered = True
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def answer_probe(request: Any, slot: FlowSlot) -> None:
    """Answer a probe with the final flag alone, and note whether the client has gone away."""
    if request.is_cancelled():
        slot.cancel()
    request.get_response_sender().send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
