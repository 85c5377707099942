"""Responses of the language model, sent on a thread of their own.

The stub's `send` returns only when the server has accepted the response. On the engine's event loop it would delay the
rows of all utterances. Nothing waits for the thread, because the flow slot counts the decoder's answers.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import triton_python_backend_utils as pb_utils

from stretto.triton_io.callers import Caller
from stretto.triton_io.failures import refuse
from stretto.triton_io.flow import FlowSlot, Outcome
from stretto.triton_io.schema import CHUNK, CODES
from stretto.triton_io.seal import Seal
from stretto.triton_io.tensors import array_tensor, bytes_tensor

T = TypeVar("T")


class ResponseThread:
    """Thread that runs blocking functions in submission order."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "responses")

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        """Queue `function`, which must not raise."""
        self._pool.submit(function, *arguments)

    async def call(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Run `function` on the thread and return its result, without blocking the event loop."""
        return await asyncio.wrap_future(self._pool.submit(function, *arguments, **named))

    def close(self) -> None:
        """Return when everything has been sent."""
        self._pool.shutdown()


class Responses:
    """Responses of one request.

    Attributes:
        failure: Error of a chunk that could not be sent.
        caller_has_left: True if `look_for_caller` has seen a disconnect.
    """

    def __init__(self, caller: Caller, thread: ResponseThread, seal: Seal) -> None:
        self._caller, self._sender = caller, caller.sender
        self._thread = thread
        self._seal = seal
        self.failure: Exception | None = None
        self.caller_has_left = False

    def send(self, record: bytes, codes: np.ndarray | None) -> None:
        """Send the authenticated record of a chunk or probe, and the chunk's codes [K, T]."""
        tensors = [bytes_tensor(CHUNK, self._seal.close(CHUNK.name, record, codes))]
        if codes is not None:
            tensors.append(array_tensor(CODES, codes))
        self._thread.submit(self._send, pb_utils.InferenceResponse(tensors))

    def _send(self, response: Any) -> None:
        try:
            self._sender.send(response)
        except Exception as error:
            self.failure = error

    async def end(self) -> None:
        """Send the final flag."""
        await self._thread.call(self._sender.send, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    async def refuse(self, error: BaseException, whose: str) -> None:
        """Send an error with the final flag."""
        await self._thread.call(refuse, self._sender, error, whose)

    def look_for_caller(self, slot: FlowSlot) -> None:
        """Update `caller_has_left`. Triton does not tell an ensemble's earlier steps, but the proxy does.

        A decoder learns of it through the slot. If nothing has been answered at the next check, there is no decoder,
        because this model itself was called.
        """
        if self._caller.is_marked:
            self.caller_has_left |= slot.outcome is Outcome.CANCELLED
            slot.conclude(Outcome.CANCELLED)
        self._thread.submit(self._look)

    def _look(self) -> None:
        self.caller_has_left = self.caller_has_left or self._sender.is_cancelled()
