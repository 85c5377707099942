"""A client's end of a Wyoming connection."""

import asyncio
import json
from typing import Any

from tests.patience import PATIENCE_S

FORM = {"rate": 16_000, "width": 2, "channels": 1}


class Line:
    """A client that sends and reads events as the protocol's description has them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader = reader
        self.writer = writer

    async def send(self, event: str, payload: bytes = b"", **fields: Any) -> None:
        """Send an event."""
        data = json.dumps(fields).encode()
        head = {"type": event, "version": "1.0", "data_length": len(data), "payload_length": len(payload)}
        await self.write(json.dumps(head).encode() + b"\n" + data + payload)

    async def write(self, data: bytes) -> None:
        """Send bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def read(self) -> dict[str, Any]:
        """Return the fields of the next event, with its `type`, and its bytes as `payload` if it has some."""
        async with asyncio.timeout(PATIENCE_S):
            head = json.loads(await self.reader.readuntil())
            data = await self.reader.readexactly(head["data_length"])
            payload = await self.reader.readexactly(head["payload_length"])
        fields = {"type": head["type"]} | json.loads(data or b"{}")
        return fields | ({"payload": payload} if payload else {})

    async def until(self, *names: str) -> list[dict[str, Any]]:
        """Return all events up to the next one of these types."""
        events = [await self.read()]
        while events[-1]["type"] not in names:
            events.append(await self.read())
        return events

    async def is_closed(self) -> bool:
        """Return True once the gateway has closed the connection; there must be no further event."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read() == b""

    def close(self) -> None:
        """Close the connection at once."""
        self.writer.transport.abort()


async def connected(port: int) -> Line:
    """Return a client that is connected to a port of this host."""
    return Line(*await asyncio.open_connection("127.0.0.1", port))


def events_in(data: bytes) -> list[tuple[str, bytes]]:
    """Return the events in what a side has sent: their types, and their bytes, with spaces in place of audio."""
    events = list[tuple[str, bytes]]()
    while b"\n" in data:
        head = json.loads(data[: data.index(b"\n")])
        begin = data.index(b"\n") + 1 + head.get("data_length", 0)
        num_bytes = head.get("payload_length", 0)
        events.append((head["type"], data[:begin] + b" " * num_bytes))
        data = data[begin + num_bytes :]
    return events


def types(events: list[dict[str, Any]]) -> list[str]:
    """Return the types of events, without repetitions in a row."""
    names = [event["type"] for event in events]
    return [name for index, name in enumerate(names) if names[:index][-1:] != [name]]


def audio(events: list[dict[str, Any]]) -> bytes:
    """Return the speech in events."""
    return b"".join(event["payload"] for event in events if event["type"] == "audio-chunk")
