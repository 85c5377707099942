"""Responses of the language model, sent on a thread of their own.

The stub's `send` returns only when the server has taken the response in, and the event loop that serves the utterances
is the engine's, too: while one waits on it, no other utterance gets its rows.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import triton_python_backend_utils as pb_utils

from stretto.triton_io.failures import refuse
from stretto.triton_io.schema import CHUNK, CODES
from stretto.triton_io.seal import Seal
from stretto.triton_io.tensors import array_tensor, bytes_tensor

T = TypeVar("T")


class ResponseThread:
    """Calls what may block, one after another, in the order in which it was asked to."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "responses")

    async def call(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """What `function` returns; the event loop goes on meanwhile."""
        return await asyncio.wrap_future(self._pool.submit(function, *arguments, **named))

    def close(self) -> None:
        """Return when all is sent."""
        self._pool.shutdown()


class Responses:
    """What goes out for one request."""

    def __init__(self, sender: Any, thread: ResponseThread, seal: Seal) -> None:
        self._sender = sender
        self._thread = thread
        self._seal = seal

    async def send(self, record: bytes, codes: np.ndarray | None) -> None:
        """The record of a chunk or a probe, sealed, and the chunk's codes [K, T]."""
        tensors = [bytes_tensor(CHUNK, self._seal.close(CHUNK.name, record, codes))]
        if codes is not None:
            tensors.append(array_tensor(CODES, codes))
        await self._thread.call(self._sender.send, pb_utils.InferenceResponse(tensors))

    async def end(self) -> None:
        """The final flag."""
        await self._thread.call(self._sender.send, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    async def refuse(self, error: BaseException, whose: str) -> None:
        """An error, with the final flag."""
        await self._thread.call(refuse, self._sender, error, whose)

    async def is_cancelled(self) -> bool:
        """Whether who called this model has gone away. An ensemble does not tell its earlier steps."""
        return await self._thread.call(self._sender.is_cancelled)
