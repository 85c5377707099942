"""Calls to Triton of one message and one answer."""

import asyncio
from collections.abc import Awaitable
from contextlib import ExitStack, suppress
from typing import Any

import grpc

from stretto.serving.proxy.access import APIS, MODEL_STREAM_INFER, Metadata
from stretto.serving.proxy.gate import Gate, Restarting
from stretto.serving.proxy.triton_stream import Unwatched

# Triton 2.51 reads memory that it has freed when a stream with this header ends with an error.
DROPPED_HEADERS = {"triton_grpc_error"}


class SoleCalls:
    """Makes them. One that its caller does not wait for goes on, unless a model is started again, or is not ours."""

    def __init__(self, triton: grpc.aio.Channel, unwatched: Unwatched, gate: Gate) -> None:
        self._calls = {method: triton.unary_unary(method) for method in APIS if method != MODEL_STREAM_INFER}
        self._unwatched, self._gate = unwatched, gate

    async def ask(
        self, method: str, request: bytes, metadata: Metadata, place: ExitStack | None = None, is_ours: bool = True
    ) -> bytes:
        """Triton's answer. Who does not wait for it keeps his `place` until it is there.

        is_ours: else it is for somebody else's model, which asks Triton whether its caller has left.
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
                call.cancel()  # of what has been answered already that is nothing


async def _result(call: Awaitable[bytes]) -> bytes:
    return bytes(await call)


async def _shielded(answering: asyncio.Task[bytes]) -> bytes:
    return await asyncio.shield(answering)


def passed_on(metadata: Metadata) -> tuple[tuple[str, str | bytes], ...]:
    """What of a caller's metadata Triton is told."""
    return tuple((name, value) for name, value in metadata if name not in DROPPED_HEADERS and name[:5] != "grpc-")
