"""Events of the Wyoming protocol, and the connection and the channel that transport them.

An event is a line of JSON, further fields as JSON, and bytes. The line states the lengths of the other two.
"""

import asyncio
import json
from contextlib import suppress
from typing import Any, NamedTuple

from starlette.types import Message
from starlette.websockets import WebSocketDisconnect

from stretto_gateway.admission import EventPace
from stretto_gateway.answers import ApiError, mismatch, refused
from stretto_gateway.connection import POLICY
from stretto_gateway.socket_session import SessionEnd, SocketChannel, read_json

MAX_LINE_BYTES = 65_536  # the longest line that the package `wyoming` reads
LINGER_S = 1.0  # for the client to read why the session has ended
LENGTHS = ("data_length", "payload_length")


class Event(NamedTuple):
    """Event with its fields and its bytes."""

    type: str
    fields: dict[str, Any]
    payload: bytes = b""

    def to_bytes(self) -> bytes:
        data = json.dumps(self.fields).encode() if self.fields else b""
        head = {"type": self.type} | dict(zip(LENGTHS, (len(data), len(self.payload)), strict=True))
        return json.dumps(head).encode() + b"\n" + data + self.payload


async def read_event(reader: asyncio.StreamReader, max_bytes: int, pace: EventPace) -> Event:
    """Return the next event.

    Args:
        reader: Stream with the limit MAX_LINE_BYTES.
        max_bytes: Maximum size of the further fields, and of the bytes.

    Raises:
        ApiError: The event is invalid, and its end has been read.
        SessionEnd: The line is not a JSON object, or the event is too large, or its end is unknown.
        IncompleteReadError: The client has disconnected.
    """
    try:
        line = await reader.readuntil()
    except asyncio.LimitOverrunError:
        raise _broken(mismatch("line", f"at most {MAX_LINE_BYTES} bytes", "more")) from None
    try:
        head = await _record(line, pace)
    except ApiError as error:  # such as a browser's request, whose body might contain events
        raise _broken(error) from None
    num_bytes = [head.get(name) or 0 for name in LENGTHS]
    for name, length in zip(LENGTHS, num_bytes, strict=True):
        if type(length) is not int or not 0 <= length <= max_bytes:
            raise _broken(refused(name, f"a number of at most {max_bytes} bytes", length))
    data = await reader.readexactly(num_bytes[0])
    payload = await reader.readexactly(num_bytes[1])
    fields = head.get("data") or {}
    if not isinstance(fields, dict):
        raise refused("data", "an object", fields)
    if not isinstance(head.get("type"), str):
        raise refused("type", "the name of an event", head.get("type"))
    return Event(head["type"], fields | (await _record(data, pace) if data else {}), payload)


async def _record(data: bytes, pace: EventPace) -> dict[str, Any]:
    try:
        text = data.decode()
        await pace.wait(text)
        return read_json(text)
    except UnicodeDecodeError:
        raise ApiError(400, "expected an event in UTF-8, got other bytes", code="invalid_event") from None


def _broken(error: ApiError) -> SessionEnd:
    return SessionEnd(POLICY, "an event cannot be read", error)


class WyomingSocket:
    """TCP connection of a client. Its messages are `Event`s, or an ApiError for each invalid one."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, max_event_bytes: int, pace: EventPace
    ):
        self._reader = reader
        self._writer = writer
        self._max_event_bytes = max_event_bytes
        self._pace = pace

    async def receive(self) -> Message:
        """Return the next message, in the field `bytes`; raise SessionEnd if no more can be read."""
        await asyncio.sleep(0)  # reading events that have arrived already would block others
        message: Event | ApiError
        try:
            message = await read_event(self._reader, self._max_event_bytes, self._pace)
        except ApiError as error:
            message = error
        except (asyncio.IncompleteReadError, OSError):
            return {"type": "websocket.disconnect"}
        return {"type": "websocket.receive", "bytes": message}

    async def send_text(self, data: str) -> None:
        await self.send_bytes(data.encode())

    async def send_bytes(self, data: bytes) -> None:
        """Send a part of the stream; raise WebSocketDisconnect if the client has disconnected."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError:
            raise WebSocketDisconnect from None

    async def close(self, code: int, reason: str) -> None:
        """End the stream, and read and drop later input, because TCP would otherwise discard the last event."""
        with suppress(OSError, TimeoutError):
            self._writer.write_eof()
            async with asyncio.timeout(LINGER_S):
                while await self._reader.read(MAX_LINE_BYTES):
                    pass


class WyomingChannel(SocketChannel):
    """Channel for Wyoming events."""

    async def send(self, event_type: str, **fields: Any) -> None:
        await self.send_event(Event(event_type, fields))

    async def send_event(self, event: Event) -> None:
        """Send an event; raise SessionEnd if the client has disconnected or does not read."""
        await self.send_bytes(event.to_bytes())

    async def send_error(self, error: ApiError, event_id: str | None = None) -> None:
        self._count_error()
        await self.send("error", text=error.message, code=error.code or "failed")
