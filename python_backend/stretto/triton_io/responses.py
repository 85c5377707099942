"""Responses of the language model, sent on a thread of their own.

The stub's `send` returns only when the server has taken the response in, and the event loop that serves the utterances
is the engine's, too: while one waits on it, no other utterance gets its rows. Nor does it wait for the thread: what
the decoder answers is counted in the flow slot.
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
    """Calls what may block, one after another, in the order in which it was asked to."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "responses")

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have `function` called, which may not raise."""
        self._pool.submit(function, *arguments)

    async def call(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """What `function` returns; the event loop goes on meanwhile."""
        return await asyncio.wrap_future(self._pool.submit(function, *arguments, **named))

    def close(self) -> None:
        """Return when all is sent."""
        self._pool.shutdown()


class Responses:
    """What goes out for one request.

    failure: why a chunk could not be sent. caller_has_left: whether who called this model has gone away, as far as
    `look_for_caller` has seen. The thread sets both, the second also who looks.
    """

    def __init__(self, caller: Caller, thread: ResponseThread, seal: Seal) -> None:
        self._caller, self._sender = caller, caller.sender
        self._thread = thread
        self._seal = seal
        self.failure: Exception | None = None
        self.caller_has_left = False

    def send(self, record: bytes, codes: np.ndarray | None) -> None:
        """The record of a chunk or a probe, sealed, and the chunk's codes [K, T]."""
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
        """The final flag."""
        await self._thread.call(self._sender.send, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    async def refuse(self, error: BaseException, whose: str) -> None:
        """An error, with the final flag."""
        await self._thread.call(refuse, self._sender, error, whose)

    def look_for_caller(self, slot: FlowSlot) -> None:
        """Have `caller_has_left` brought up to date. An ensemble does not tell its earlier steps, but the proxy does.

        A decoder hears of that by the slot. Where nothing is answered at the next look even so, there is none: it is
        this model itself that was asked.
        """
        if self._caller.is_marked:
            self.caller_has_left |= slot.outcome is Outcome.CANCELLED
            slot.conclude(Outcome.CANCELLED)
        self._thread.submit(self._look)

    def _look(self) -> None:
        self.caller_has_left = self.caller_has_left or self._sender.is_cancelled()
