"""HTTP requests that the gateway sends to a webhook."""

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import cache
from urllib.parse import SplitResult, urlsplit

import httptools

READ_BYTES = 65_536
PORTS = {"http": 80, "https": 443}


class OutgoingError(Exception):
    """Failure of a request, with a message that contains nothing of the response."""


class Answer:
    """Response to a request. The parser sets the attributes as it reads the head.

    Args:
        reader: Stream of the connection.
        stall_s: Maximum time until the next bytes, in seconds.

    Attributes:
        status: Status code; 0 until the head is complete.
        headers: Headers with names in lower case.
    """

    def __init__(self, reader: asyncio.StreamReader, stall_s: float):
        self.status, self.headers = 0, dict[str, str]()
        self._reader, self._stall_s = reader, stall_s
        self._parts, self._is_complete, self._has_head = list[bytes](), False, False
        self._parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status, self._has_head = self._parser.get_status_code(), True

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        self._is_complete = True

    async def read_head(self) -> None:
        """Read the status and the headers."""
        while not self._has_head:
            await self._read()

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it arrives; raise OutgoingError if it is cut short."""
        while True:
            parts, self._parts = self._parts, []
            for part in parts:
                yield part
            if self._is_complete:
                return
            if not self._parts:
                await self._read()

    async def _read(self) -> None:
        try:
            async with asyncio.timeout(self._stall_s):
                data = await self._reader.read(READ_BYTES)
        except TimeoutError:
            raise OutgoingError(f"nothing arrived for {self._stall_s:g} s") from None
        except OSError:
            data = b""
        if not data:
            # without a length, the end of the connection is the end of the body
            if self._has_head and not self.headers.keys() & {"content-length", "transfer-encoding"}:
                self._is_complete = True
                return
            raise OutgoingError("the connection ended before the response was complete")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            raise OutgoingError("the response is not valid HTTP") from None


def url_parts(url: str) -> SplitResult:
    """Return the parts of an `http` or `https` URL with a host; raise ValueError for another one."""
    parts = urlsplit(url)
    is_plain = url.isascii() and url.isprintable() and " " not in url
    if not is_plain or parts.scheme not in PORTS or not parts.hostname or parts.username is not None:
        raise ValueError("expected an http:// or https:// URL with a host and without a user")
    _ = parts.port  # raises ValueError if it is not a number
    return parts


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


@asynccontextmanager
async def sent(url: str, body: bytes, headers: Mapping[str, str], stall_s: float) -> AsyncIterator[Answer]:
    """Send a POST request on its own connection, and yield the response once its head has been read.

    Redirects are responses like any other. Proxies of the environment are not used.

    Args:
        url: Address of the resource, as `url_parts` accepts it.
        body: JSON.
        headers: Further headers.
        stall_s: Maximum time for the connection, and until further bytes arrive, in seconds.

    Raises:
        OutgoingError: The connection or the response fails.
    """
    parts = url_parts(url)
    try:
        async with asyncio.timeout(stall_s):
            tls = _tls() if parts.scheme == "https" else None
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port or PORTS[parts.scheme], ssl=tls)
    except TimeoutError:
        raise OutgoingError(f"no connection within {stall_s:g} s") from None
    except (socket.gaierror, UnicodeError):
        raise OutgoingError("the host has no address") from None
    except OSError:
        raise OutgoingError("the connection failed") from None
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = {"host": parts.netloc, "connection": "close", "accept-encoding": "identity", **headers}
        lines |= {"content-type": "application/json", "content-length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        writer.write(f"POST {target} HTTP/1.1\r\n{head}\r\n".encode() + body)
        answer = Answer(reader, stall_s)
        await answer.read_head()
        yield answer
    finally:
        writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await writer.wait_closed()
