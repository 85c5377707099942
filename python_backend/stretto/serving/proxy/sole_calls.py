"""Calls to Triton of one message and one answer."""

import asyncio
from collections.abc import Awaitable
from contextlib import ExitStack

import grpc

from stretto.serving.proxy.access import APIS, MODEL_STREAM_INFER, Metadata
from stretto.serving.proxy.gate import Gate
from stretto.serving.proxy.triton_stream import Unwatched

# Triton 2.51 reads memory that it has freed when a stream with this header ends with an error.
DROPPED_HEADERS = {"triton_grpc_error"}


class SoleCalls:
    """Makes them; one that its caller does not wait for goes on."""

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
            if not is_ours or self._gate.is_shut:  # which Triton may never answer
                call.cancel()
            elif place is not None:
                kept = place.pop_all()
                answering.add_done_callback(lambda _: kept.close())
            raise


async def _result(call: Awaitable[bytes]) -> bytes:
    return bytes(await call)


def passed_on(metadata: Metadata) -> tuple[tuple[str, str | bytes], ...]:
    """What of a caller's metadata Triton is told."""
    return tuple((name, value) for name, value in metadata if name not in DROPPED_HEADERS and name[:5] != "grpc-")
