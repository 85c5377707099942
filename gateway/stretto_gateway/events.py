"""Streamed response bodies and server-sent events."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stretto_client import ClientError, SpeechEvent
from stretto_client.tries import Begin, events_in_turn, once
from stretto_gateway.admission import CLIENT_LEFT, CallerDisconnected, unless_disconnected
from stretto_gateway.answers import ApiError, from_client_error
from stretto_gateway.metrics import SpeechTrace, Trace
from stretto_gateway.server_queue import ServerQueue

PIECE_BYTES = 16_384  # bytes per send, small enough that a slow client can read them within the time limit
Part = TypeVar("Part")
LOG = logging.getLogger("stretto_gateway")


class Streamed(Response):
    """HTTP response that is sent part by part.

    If an ApiError is raised before the first part, it becomes the whole response. If it is raised later, the connection
    is closed early, so that no client considers the response complete. If the format can represent an error, a final
    part from `last_words` is sent first. The generator `parts` is closed if the client disconnects or reads nothing for
    `stall_s` seconds.

    Args:
        last_words: Function that formats an error as a final part.
        first_headers: Function that returns further headers once the first part is ready.
    """

    def __init__(
        self,
        parts: AsyncGenerator[bytes, None],
        media_type: str,
        stall_s: float,
        last_words: Callable[[ApiError], bytes] | None = None,
        first_headers: Callable[[], Mapping[str, str]] = dict,
    ):
        super().__init__(media_type=media_type, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._parts = parts
        self._stall_s = stall_s
        self._last_words = last_words
        self._first_headers = first_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(CallerDisconnected):
            await unless_disconnected(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._parts) as parts:
            data: bytes | None = await anext(parts)
            self.headers.update(self._first_headers())
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while data is not None:
                try:
                    for begin in range(0, len(data), PIECE_BYTES):
                        async with asyncio.timeout(self._stall_s):
                            piece = data[begin : begin + PIECE_BYTES]
                            await send({"type": "http.response.body", "body": piece, "more_body": True})
                    data = await anext(parts, None)
                except TimeoutError:
                    LOG.warning("a client read nothing for %g s and was disconnected", self._stall_s)
                    return
                except ApiError as error:
                    LOG.warning("a response was aborted: %s", error.code)
                    if self._last_words is not None:
                        await send({"type": "http.response.body", "body": self._last_words(error), "more_body": True})
                    return  # the last message is not sent, so the client sees an incomplete response
            await send({"type": "http.response.body", "body": b"", "more_body": False})


@asynccontextmanager
async def closing(parts: AsyncGenerator[Part, None]) -> AsyncIterator[AsyncGenerator[Part, None]]:
    """Close a generator at the end of a `with` block. An error in the block is also raised in the generator.

    With a GeneratorExit, the generator could not distinguish an error from a disconnected client.
    """
    async with aclosing(parts):
        try:
            yield parts
        except Exception as error:
            await parts.athrow(error)
            raise


async def client_events(
    begin: Begin, fields: dict[str, str], queue: ServerQueue | None = None
) -> AsyncGenerator[SpeechEvent, None]:
    """Yield the events of a response, and close the response at the end; raise ApiError if it fails.

    Args:
        fields: Request fields, keyed by the server's field names.
        queue: Queue in which the request waits if the server is full; None for a request that cannot be sent again.
    """
    try:
        async with aclosing(events_in_turn(begin, once if queue is None else queue.first_tries)) as events:
            async for event in events:
                yield event
    except ClientError as error:
        raise from_client_error(error, fields) from None
    finally:
        if queue is not None:
            queue.note_end()


async def text_events(
    begin: Begin, fields: dict[str, str], trace: Trace, queue: ServerQueue | None = None
) -> AsyncGenerator[SpeechEvent, None]:
    """Yield the events of a text response and record them in `trace`; raise ApiError if the response fails."""
    trace.start()
    try:
        async with aclosing(client_events(begin, fields, queue)) as events:
            async for event in events:
                trace.add(event)
                yield event
    except CLIENT_LEFT:
        trace.cancel()
        raise
    finally:
        trace.close()


async def speech_events(
    begin: Begin, fields: dict[str, str], trace: SpeechTrace, queue: ServerQueue | None = None
) -> AsyncGenerator[SpeechEvent, None]:
    """Yield the events of a speech response and record them; raise ApiError if it fails or has no samples."""
    async with closing(text_events(begin, fields, trace, queue)) as events:
        async for event in events:
            yield event
    if not trace.has_sound:
        raise ApiError(502, "the model has generated no audio", code="no_audio")


def reply_events(
    begin: Begin, fields: dict[str, str], trace: Trace, queue: ServerQueue | None = None
) -> AsyncGenerator[SpeechEvent, None]:
    """Yield the events of a speech or text response, as determined by the type of `trace`."""
    if isinstance(trace, SpeechTrace):
        return speech_events(begin, fields, trace, queue)
    return text_events(begin, fields, trace, queue)
