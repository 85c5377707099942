"""Event channel from a session to its client."""

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
    """End of a session.

    Args:
        code: Close code of the WebSocket; None if the client has disconnected.
        reason: Reason for the client.
        error: Error to send to the client, instead of the reason.
    """

    def __init__(self, code: int | None = None, reason: str = "", error: ApiError | None = None):
        super().__init__(code, reason)
        self.code, self.reason, self.error = code, reason, error


class Channel:
    """Ordered event stream to a client.

    The session ends if the client does not read an event within `stall_s` seconds.
    """

    def __init__(self, socket: WebSocket, stall_s: float):
        self._socket, self._stall_s = socket, stall_s

    async def send(self, kind: str, **fields: Any) -> None:
        """Send an event; raise SessionEnd if the client has disconnected or does not read."""
        record = {"type": kind, "event_id": new_id("event")} | fields
        await self._taken(self._socket.send_text(json.dumps(record)))

    async def send_bytes(self, data: bytes) -> None:
        """Send part of a file as a binary message; raise SessionEnd if the client has disconnected or does not read."""
        await self._taken(self._socket.send_bytes(data))

    async def _taken(self, sending: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._stall_s):
                await sending
        except TimeoutError:
            LOG.warning("a listener took nothing for %g s and was left", self._stall_s)
            raise SessionEnd from None
        except (WebSocketDisconnect, RuntimeError):  # RuntimeError: uvicorn has already closed it
            raise SessionEnd from None

    async def tell(self, error: ApiError, event_id: str | None = None) -> None:
        """Send an error; `event_id` is the client's id of the event that caused it."""
        await self.send("error", error=error.record()["error"] | {"event_id": event_id})

    async def close(self, end: SessionEnd) -> None:
        """Send the reason for the end of the session, and close it."""
        assert end.code is not None
        with suppress(SessionEnd):
            await self.tell(end.error or ApiError(400, f"the session is over: {end.reason}", code="session_ended"))
        with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
            async with asyncio.timeout(self._stall_s):
                await self._socket.close(end.code, end.reason)
