"""Event stream of one utterance, with its timeouts and its cancellation."""

import asyncio
import time
from typing import Any, Protocol, Self

import grpc
from tritonclient.grpc import InferResult

from stretto_client.errors import ClientError, RequestCancelled, ServerFailed, TimedOut, from_rpc, from_text
from stretto_client.event import SpeechEvent, is_last, read_event
from stretto_client.sharing import Sharing
from stretto_client.timeouts import Timeouts


class Owner(Protocol):
    """Client that a stream belongs to."""

    server: str
    timeouts: Timeouts

    def take_back(self, sharing: Sharing) -> None:
        """Free the shared memory of an utterance."""
        ...


class SpeechStream:
    """Events of one utterance, in order.

    `cancel`, `aclose`, the end of `async with` and deletion of the object cancel the utterance. If it fails, the
    iteration raises a ClientError.
    """

    def __init__(self, responses: Any, client: Owner, sharing: Sharing | None = None, timeouts: Timeouts | None = None):
        self._responses = responses
        self._client, self._sharing = client, sharing
        self._timeouts, self._server = timeouts or client.timeouts, client.server
        self._started_s = time.monotonic()
        self._is_first = True
        self._is_complete = False  # the last event has been read
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SpeechEvent:
        while not self._is_over:
            result = await self._next_response()
            if result is None:
                break
            event = read_event(result, None if self._sharing is None else self._sharing.ring)
            if is_last(result):
                self._end()
            if event is not None:
                self._is_complete = event.is_final
                return event
        self._end()
        if not self._is_complete:
            raise self._failed(ServerFailed("the stream ended before the utterance did"))
        raise StopAsyncIteration

    def cancel(self) -> None:
        """Cancel the utterance, also on the server; a pending or later read raises RequestCancelled."""
        self._responses.cancel()

    async def aclose(self) -> None:
        """Cancel the utterance and end the iteration."""
        self._is_complete = True
        self.cancel()
        self._end()

    def __del__(self) -> None:
        # A stream that was left by `break` and deleted: stop the server's work.
        if not self._is_over:
            self.cancel()
            self._end()

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            if self._sharing is not None:
                self._client.take_back(self._sharing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _next_response(self) -> InferResult | None:
        """Return the next response; None at the end of the stream."""
        limit, waits_for = self._patience()
        try:
            async with asyncio.timeout(limit):
                result, error = await anext(self._responses)
        except StopAsyncIteration:
            return None
        except TimeoutError:
            raise self._failed(TimedOut(f"{self._server}: {waits_for}")) from None
        except grpc.RpcError as error:
            raise self._failed(from_rpc(error, self._server)) from error
        except asyncio.CancelledError:
            cancelled_by_caller = (task := asyncio.current_task()) is not None and task.cancelling()
            failure = self._failed(RequestCancelled("the request was cancelled"))
            if cancelled_by_caller:
                raise
            raise failure from None
        if error is not None:
            raise self._failed(from_text(error.message()))
        self._is_first = False
        return result

    def _patience(self) -> tuple[float, str]:
        """Return the seconds to wait for the next response, and the message for a timeout."""
        limits = self._timeouts
        left_s = limits.total_s - (time.monotonic() - self._started_s)
        next_s = limits.first_s if self._is_first else limits.between_s
        if left_s < next_s:
            return max(left_s, 0.0), f"the utterance was not complete after {limits.total_s:g} s"
        which = "first" if self._is_first else "next"
        return next_s, f"no {which} response within {next_s:g} s"

    def _failed(self, error: ClientError) -> ClientError:
        self._is_complete = True
        self._responses.cancel()
        self._end()
        return error
