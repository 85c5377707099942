"""A connection to a server that can be reset amid what passes over it."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress


@asynccontextmanager
async def relay(server: str) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """A port of this host that leads to `server`, and how to reset every connection through it."""
    host, _, port = server.rpartition(":")
    writers: list[asyncio.StreamWriter] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while some := await reader.read(1 << 16):
                writer.write(some)
                await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection(host, int(port))
        except OSError:  # which is what has been done to the server
            writer.transport.abort()
            return
        writers.extend((writer, to_server))
        await asyncio.gather(copy(reader, to_server), copy(from_server, writer))

    def reset() -> None:
        for writer in writers:
            if not writer.is_closing():
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()

    listener = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}", reset
    finally:
        listener.close()
        reset()
