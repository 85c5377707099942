"""What a session tells its client."""

import asyncio
import json
import logging
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from stretto_gateway.api_error import ApiError
from stretto_gateway.realtime.conversation import new_id

LOG = logging.getLogger("stretto_gateway")


class SessionEnd(Exception):
    """The session is over; `code` closes its WebSocket, None where there is nobody left to be told.

    error: what its client is told, unless that is the reason alone.
    """

    def __init__(self, code: int | None = None, reason: str = "", error: ApiError | None = None):
        super().__init__(code, reason)
        self.code, self.reason, self.error = code, reason, error


class Channel:
    """Sends events, in the order in which they are given to it, to who takes one within `stall_s`."""

    def __init__(self, socket: WebSocket, stall_s: float):
        self._socket, self._stall_s = socket, stall_s

    async def send(self, kind: str, **fields: Any) -> None:
        """Send an event; SessionEnd where nobody takes it."""
        record = {"type": kind, "event_id": new_id("event")} | fields
        await self._taken(self._socket.send_text(json.dumps(record)))

    async def send_bytes(self, data: bytes) -> None:
        """Send some of a file as a message of its own; SessionEnd where nobody takes it."""
        await self._taken(self._socket.send_bytes(data))

    async def _taken(self, sending: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._stall_s):
                await sending
        except TimeoutError:
            LOG.warning("a listener took nothing for %g s and was left", self._stall_s)
            raise SessionEnd from None
        except (WebSocketDisconnect, RuntimeError):  # RuntimeError: uvicorn has closed it already
            raise SessionEnd from None

    async def tell(self, error: ApiError, event_id: str | None = None) -> None:
        """Send an error; `event_id` is the client's of the event that it is about."""
        await self.send("error", error=error.record()["error"] | {"event_id": event_id})

    async def close(self, end: SessionEnd) -> None:
        """Say why the session is over, and close it."""
        assert end.code is not None
        with suppress(SessionEnd):
            await self.tell(end.error or ApiError(400, f"the session is over: {end.reason}", code="session_ended"))
        with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
            async with asyncio.timeout(self._stall_s):
                await self._socket.close(end.code, end.reason)
