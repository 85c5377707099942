"""A client's stream, connected to the Triton stream that answers it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from tritonclient.grpc.service_pb2 import ModelStreamInferResponse

from stretto.serving.proxy.infer_request import BadRequest, with_origin
from stretto.serving.proxy.triton_stream import TritonStream
from stretto.serving.proxy.triton_words import Tell, retold

Context = Any  # grpc.aio.ServicerContext, of bytes
Check = Callable[[bytes], Awaitable[None]]


class ClientStream:
    """Forwards requests of a client's stream to Triton, and responses back.

    Attributes:
        stream: The stream to Triton.
    """

    def __init__(self, stream: TritonStream, context: Context, give_up: Tell) -> None:
        self.stream, self._context, self._give_up = stream, context, give_up
        self._writing = asyncio.Lock()

    async def feed(self, check: Check, host: str) -> None:
        """Forward valid requests until the client half-closes; answer invalid ones here and keep the stream open.

        No request is read while a response is waiting for the client, because it would only be buffered, here or in
        Triton.

        Args:
            check: Raises BadRequest for an invalid request.
            host: Host of the client, added to each request.
        """
        while True:
            async with self._writing:
                pass
            request = await self._context.read()
            if request is grpc.aio.EOF:
                break
            refusal = await self._pass_on(request, check, host)
            del request
            if refusal is not None:
                await self._write(refusal)
        await self.stream.end()

    async def _pass_on(self, request: bytes, check: Check, host: str) -> bytes | None:
        """Forward a valid request as soon as it is checked; return the error response to an invalid one."""
        try:
            await check(request)
        except BadRequest as error:
            response = ModelStreamInferResponse(error_message=error.told)
            response.infer_response.id = error.request_id
            return response.SerializeToString()
        await self.stream.write(with_origin(request, host, self.stream.number))
        return None

    async def answer(self) -> None:
        """Forward Triton's responses until its stream ends; raise AioRpcError if it ends with an error."""
        while (response := await self.stream.read()) is not None:
            await self._write(retold(response, self._give_up))

    async def _write(self, response: bytes) -> None:
        async with self._writing:
            await self._context.write(response)
