"""TCP relay whose connections can be cut, for the test scripts of the plug-ins."""

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit


class Relay:
    """Relay to the host and port of a URL, which counts its connections."""

    def __init__(self, url: str):
        parts = urlsplit(url)
        self._host = parts.hostname
        self._port = parts.port
        self._writers: set[asyncio.StreamWriter] = set()
        self.num_connections = 0

    async def start(self) -> str:
        """Start to listen, and return the URL of the API."""
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    def cut(self) -> None:
        """Cut all connections, as a server does when it stops."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        back, forth = await asyncio.open_connection(self._host, self._port)
        self._writers |= {writer, forth}
        await asyncio.gather(_copy(reader, forth), _copy(back, writer))


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
    sink.close()
