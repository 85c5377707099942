"""HTTP requests that the gateway sends: to a webhook, and to hosts of recordings."""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import SplitResult, urlsplit

import httptools

READ_BYTES = 65_536
PORTS = {"http": 80, "https": 443}
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
Address = IPv4Address | IPv6Address


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


def is_public(address: Address) -> bool:
    """Return True if an address, and any IPv4 address that it contains, belongs to the public Internet."""
    inner: list[Address | None] = [address]
    if isinstance(address, IPv6Address):
        inner += [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        inner += [IPv4Address(int(address) & 0xFFFF_FFFF)] if address in NAT64 else []
    return all(each.is_global and not each.is_multicast for each in inner if each is not None)


def anywhere(_: Address) -> bool:
    """Return True: the operator has chosen the URL."""
    return True


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


async def _addresses(host: str, port: int) -> list[Address]:
    """Return the addresses of a host; raise OutgoingError if it has none."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise OutgoingError("the host has no address") from None
    return [ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in found]


@asynccontextmanager
async def sent(
    url: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    stall_s: float = 30.0,
    may_connect: Callable[[Address], bool] = anywhere,
) -> AsyncIterator[Answer]:
    """Send a request on its own connection, and yield the response once its head has been read.

    Redirects are responses like any other. Proxies of the environment are not used.

    Args:
        url: Address of the resource, as `url_parts` accepts it.
        body: JSON for a POST request; None for GET.
        headers: Further headers.
        stall_s: Maximum time for the connection, and until further bytes arrive, in seconds.
        may_connect: Predicate that each address of the host must satisfy. The connection is opened to one of these
            addresses, so that a second resolution of the name cannot choose another one.

    Raises:
        OutgoingError: The connection or the response fails, or an address is refused.
    """
    parts = url_parts(url)
    host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    is_secure = parts.scheme == "https"
    try:
        async with asyncio.timeout(stall_s):
            addresses = await _addresses(host, port)
            if not all(map(may_connect, addresses)):
                raise OutgoingError("the host's address is not public")
            tls = {"ssl": _tls(), "server_hostname": host} if is_secure else {}
            reader, writer = await asyncio.open_connection(str(addresses[0]), port, **tls)  # type: ignore[arg-type]
    except TimeoutError:
        raise OutgoingError(f"no connection within {stall_s:g} s") from None
    except OSError:
        raise OutgoingError("the connection failed") from None
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = {"host": parts.netloc, "connection": "close", "accept-encoding": "identity", **(headers or {})}
        if body is not None:
            lines |= {"content-type": "application/json", "content-length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        writer.write(f"{'GET' if body is None else 'POST'} {target} HTTP/1.1\r\n{head}\r\n".encode() + (body or b""))
        answer = Answer(reader, stall_s)
        await answer.read_head()
        yield answer
    finally:
        writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await writer.wait_closed()
