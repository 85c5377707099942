"""Unary calls to Triton."""

import asyncio
from collections.abc import Awaitable
from contextlib import ExitStack, suppress
from typing import Any

import grpc

from stretto.serving.proxy.access import APIS, MODEL_STREAM_INFER, Metadata
from stretto.serving.proxy.gate import Gate, Restarting
from stretto.serving.proxy.triton_stream import Unwatched

# WORKAROUND(triton server 2.51): a stream with this header that ends with an error makes Triton read freed memory.
DROPPED_HEADERS = {"triton_grpc_error"}


class SoleCalls:
    """Makes unary calls to Triton.

    A call to one of our models continues after its client has disconnected, unless a model is restarted. A call to
    another model is cancelled.
    """

    def __init__(self, triton: grpc.aio.Channel, unwatched: Unwatched, gate: Gate) -> None:
        self._calls = {method: triton.unary_unary(method) for method in APIS if method != MODEL_STREAM_INFER}
        self._unwatched, self._gate = unwatched, gate

    async def ask(
        self, method: str, request: bytes, metadata: Metadata, place: ExitStack | None = None, is_ours: bool = True
    ) -> bytes:
        """Return Triton's response.

        Args:
            method: Full method name.
            request: Serialised message.
            metadata: Metadata of the client's call.
            place: Slot of the client's host; if the client disconnects, it is held until the response has arrived.
            is_ours: False for third-party models, which ask Triton whether the request is cancelled.
        """
        call = self._calls[method](request, metadata=passed_on(metadata))
        answering = self._unwatched.start(_result(call))
        try:
            return await asyncio.shield(answering)
        except asyncio.CancelledError:
            if is_ours:
                self._unwatched.start(self._see_off(call, answering, ExitStack() if place is None else place.pop_all()))
            else:
                call.cancel()
            raise

    async def _see_off(self, call: Any, answering: asyncio.Task[bytes], place: ExitStack) -> None:
        with place, suppress(Restarting, grpc.aio.AioRpcError):
            try:
                await self._gate.guard(_shielded(answering))
            finally:
                call.cancel()  # no effect on a completed call


async def _result(call: Awaitable[bytes]) -> bytes:
    return bytes(await call)


async def _shielded(answering: asyncio.Task[bytes]) -> bytes:
    return await asyncio.shield(answering)


def passed_on(metadata: Metadata) -> tuple[tuple[str, str | bytes], ...]:
    """Return the metadata that is forwarded to Triton."""
    return tuple((name, value) for name, value in metadata if name not in DROPPED_HEADERS and name[:5] != "grpc-")
