"""HTTP requests that the gateway sends: to a webhook, and to hosts of recordings."""

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import IPv4Address, IPv6Address

from aiohttp import (
    ClientConnectorDNSError,
    ClientError,
    ClientPayloadError,
    ClientResponse,
    ClientResponseError,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    InvalidURL,
    ServerDisconnectedError,
    TCPConnector,
)
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

SCHEMES = ("http", "https")
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
# Threads of their own, because a name server may keep them for long.
RESOLVING = ThreadPoolExecutor(4, "resolver")
Address = IPv4Address | IPv6Address


class OutgoingError(Exception):
    """Failure of a request, with a message that contains nothing of the response."""


class PublicResolver(AbstractResolver):
    """Resolver that refuses a host if any of its addresses is outside the public Internet.

    The connection is opened to one of the addresses that have been checked.
    """

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        look_up = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(RESOLVING, look_up)
        places = [(str(place[0]), int(place[1]), kind, proto) for kind, _, proto, _, place in found]
        if not all(is_public(ipaddress.ip_address(address.partition("%")[0])) for address, *_ in places):
            raise OutgoingError("the host's address is not public")
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(hostname=host, host=address, port=number, family=kind, proto=proto, flags=flags)
            for address, number, kind, proto in places
        ]

    async def close(self) -> None:
        pass


def is_public(address: Address) -> bool:
    """Return True if an address, and any IPv4 address that it contains, belongs to the public Internet."""
    inner: list[Address | None] = [address]
    if isinstance(address, IPv6Address):
        inner += [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        inner += [IPv4Address(int(address) & 0xFFFF_FFFF)] if address in NAT64 else []
    return all(each.is_global and not each.is_multicast for each in inner if each is not None)


def web_url(text: str) -> URL:
    """Return an `http` or `https` URL with a host; raise ValueError for another one."""
    expected = "expected an http:// or https:// URL with a host and without a user"
    if not (text.isascii() and text.isprintable() and " " not in text):
        raise ValueError(expected)
    try:
        url = URL(text)
        is_valid = url.scheme in SCHEMES and bool(url.host) and bool(url.port) and url.user is url.password is None
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ValueError(expected)
    return url.with_fragment(None)


@asynccontextmanager
async def sent(
    url: URL,
    body: bytes | None,
    headers: Mapping[str, str],
    stall_s: float,
    total_s: float | None = None,
    resolver: AbstractResolver | None = None,
) -> AsyncIterator[ClientResponse]:
    """Send a request on its own connection, and yield the response once its head has been read.

    Redirects are responses like any other. Proxies of the environment are not used.

    Args:
        url: Address of the resource, from `web_url`.
        body: JSON for a POST request; None for GET.
        headers: Further headers.
        stall_s: Maximum time for the connection, and until further bytes arrive, in seconds.
        total_s: Maximum time for the whole response, in seconds; None for no limit.
        resolver: Resolver of the host's name; None for the system's.

    Raises:
        OutgoingError: The connection or the response fails, also while the body is read within the `with` block.
    """
    lines = {"accept-encoding": "identity", "user-agent": "stretto"} | dict(headers)
    lines |= {"content-type": "application/json"} if body is not None else {}
    waits = ClientTimeout(total_s, connect=stall_s, sock_read=stall_s)
    connector = TCPConnector(resolver=resolver, force_close=True)
    try:
        async with (
            ClientSession(
                connector=connector, timeout=waits, cookie_jar=DummyCookieJar(), auto_decompress=False
            ) as session,
            session.request(
                "GET" if body is None else "POST", url, data=body, headers=lines, allow_redirects=False
            ) as response,
        ):
            yield response
    except TimeoutError:
        raise OutgoingError(f"no answer, or no further part of it, for {stall_s:g} s") from None
    except ClientConnectorDNSError:
        raise OutgoingError("the host has no address") from None
    except (ServerDisconnectedError, ClientPayloadError):
        raise OutgoingError("the connection ended before the response was complete") from None
    except (ClientResponseError, InvalidURL):
        raise OutgoingError("the response is not valid HTTP") from None
    except ClientError:
        raise OutgoingError("the connection failed") from None
