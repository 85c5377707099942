"""A stream to Triton that goes on, whoever waits for it is cancelled: what our models answer is not.

gRPC cancels a call with the task that reads it, or writes to it. Why Triton must not be told so: see
`departures.py`.
"""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any

import grpc
from tritonclient.grpc.service_pb2 import ModelInferRequest

from stretto.serving.proxy.infer_request import SHOWN, BadRequest

DEFAULT_VERSION = "1"  # as which a model counts whose version a request leaves open


class Unwatched:
    """What comes to its end, also where nobody waits for it any more."""

    def __init__(self) -> None:
        self._tasks = set[asyncio.Task[Any]]()

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda each: each.cancelled() or each.exception())  # told to who still waits
        return task


class TritonStream:
    """One call of ModelStreamInfer.

    number: by which our models are told that its client has gone away. model: the name and version that all its
    requests are for; None before the first.
    """

    def __init__(self, call: Any, number: int) -> None:
        self.number = number
        self.model: tuple[str, str] | None = None
        self._call, self._num_asked, self._has_answered = call, 0, False
        self._reading: asyncio.Future[Any] | None = None
        self._writing: asyncio.Future[Any] | None = None

    @property
    def is_over(self) -> bool:
        """Whether Triton has ended it, or it was cancelled."""
        return bool(self._call.done())

    @property
    def is_answered(self) -> bool:
        """Whether it is known that Triton has begun to answer all that it was asked: where that is one request."""
        return self._has_answered and self._num_asked == 1

    def ask(self, head: ModelInferRequest) -> None:
        """Take a request's model for that of the stream; BadRequest for a second one.

        Triton 2.51 writes answers of models that stream, and of those that do not, without regard of each other; of
        two writes at a time gRPC ends the process.
        """
        asked = head.model_name, head.model_version or DEFAULT_VERSION
        first = self.model = self.model or asked
        if asked != first:
            expected, got = (f"{name[:SHOWN]!r}, version {version[:SHOWN]}" for name, version in (first, asked))
            raise BadRequest(f"model_name: expected {expected}, as before on this stream, got {got}", head.id)

    async def write(self, request: bytes) -> None:
        """Send a request; raises what gRPC does where the stream is over."""
        self._num_asked += 1
        await self._written(self._call.write(request))

    async def end(self) -> None:
        """Send no more."""
        await self._written(self._call.done_writing())

    async def _written(self, writing: Awaitable[None]) -> None:
        self._writing = asyncio.ensure_future(writing)
        await asyncio.shield(self._writing)

    async def read(self) -> bytes | None:
        """The next response, None at the end; AioRpcError where Triton ends otherwise."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._call.read())
        response = await asyncio.shield(self._reading)
        self._reading = None
        if response is grpc.aio.EOF:
            return None
        self._has_answered = True
        return bytes(response)

    async def run_out(self) -> None:
        """Send no more, and take what still comes to nobody; AioRpcError where Triton ends otherwise."""
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        await self.end()
        while await self.read() is not None:
            pass

    def cancel(self) -> None:
        """End it at once."""
        self._call.cancel()
