"""A client's stream beside the one to Triton that answers it."""

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
    """Passes requests on, and answers back."""

    def __init__(self, stream: TritonStream, context: Context, give_up: Tell) -> None:
        self.stream, self._context, self._give_up = stream, context, give_up
        self._writing = asyncio.Lock()

    async def feed(self, check: Check, host: str) -> None:
        """Pass sound requests on to the end, as `host`'s; answer the others here, as Triton does, and leave the stream
        open.

        While an answer is not taken no request is: it would be kept, by Triton if not here.
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
        """Send a request on, at once when it is checked; the answer to one that is not sound."""
        try:
            await check(request)
        except BadRequest as error:
            response = ModelStreamInferResponse(error_message=error.told)
            response.infer_response.id = error.request_id
            return response.SerializeToString()
        await self.stream.write(with_origin(request, host, self.stream.number))
        return None

    async def answer(self) -> None:
        """Pass Triton's responses back to the end; AioRpcError where Triton ends otherwise."""
        while (response := await self.stream.read()) is not None:
            await self._write(retold(response, self._give_up))

    async def _write(self, response: bytes) -> None:
        async with self._writing:
            await self._context.write(response)
