"""A stream to Triton that continues when the task that awaits it is cancelled.

gRPC cancels a call together with a task that reads from it or writes to it. Calls to our models must not be cancelled;
`departures.py` explains why.
"""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any

import grpc
from tritonclient.grpc.service_pb2 import ModelInferRequest

from stretto.serving.proxy.infer_request import SHOWN, BadRequest

DEFAULT_VERSION = "1"  # version of a request that names none


class Unwatched:
    """Tasks that run to their end even if no other task awaits them."""

    def __init__(self) -> None:
        self._tasks = set[asyncio.Task[Any]]()

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # retrieve the exception, so that asyncio does not log it
        task.add_done_callback(lambda each: each.cancelled() or each.exception())
        return task


class TritonStream:
    """A ModelStreamInfer call to Triton.

    Attributes:
        number: Number by which the models recognise that its client has disconnected.
        model: Name and version of the model of all its requests; None before the first request.
    """

    def __init__(self, call: Any, number: int) -> None:
        self.number = number
        self.model: tuple[str, str] | None = None
        self._call, self._num_asked, self._has_answered = call, 0, False
        self._reading: asyncio.Future[Any] | None = None
        self._writing: asyncio.Future[Any] | None = None

    @property
    def is_over(self) -> bool:
        """True if Triton has ended the stream, or it was cancelled."""
        return bool(self._call.done())

    @property
    def is_answered(self) -> bool:
        """True if Triton has certainly begun to answer all requests of the stream.

        This is known only for a stream of one request.
        """
        return self._has_answered and self._num_asked == 1

    def ask(self, head: ModelInferRequest) -> None:
        """Record the request's model as that of the stream; raise BadRequest if it differs from earlier requests.

        WORKAROUND(triton server 2.51): it writes responses of decoupled and other models without synchronisation. gRPC
        aborts the process if two writes overlap.
        """
        asked = head.model_name, head.model_version or DEFAULT_VERSION
        first = self.model = self.model or asked
        if asked != first:
            expected, got = (f"{name[:SHOWN]!r}, version {version[:SHOWN]}" for name, version in (first, asked))
            raise BadRequest(f"model_name: expected {expected}, as before on this stream, got {got}", head.id)

    async def write(self, request: bytes) -> None:
        """Send a request; raise gRPC's error if the stream is over."""
        self._num_asked += 1
        await self._written(self._call.write(request))

    async def end(self) -> None:
        """Half-close the stream."""
        await self._written(self._call.done_writing())

    async def _written(self, writing: Awaitable[None]) -> None:
        self._writing = asyncio.ensure_future(writing)
        await asyncio.shield(self._writing)

    async def read(self) -> bytes | None:
        """Return the next response, or None at the end; raise AioRpcError if the stream ends with an error."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._call.read())
        response = await asyncio.shield(self._reading)
        self._reading = None
        if response is grpc.aio.EOF:
            return None
        self._has_answered = True
        return bytes(response)

    async def run_out(self) -> None:
        """Half-close the stream and discard its remaining responses; raise AioRpcError on an error."""
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        await self.end()
        while await self.read() is not None:
            pass

    def cancel(self) -> None:
        """Cancel the call."""
        self._call.cancel()
