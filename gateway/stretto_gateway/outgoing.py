"""HTTP requests that the gateway sends: to a webhook, and to hosts of recordings."""

import ipaddress
import socket
from collections.abc import AsyncIterator, Mapping
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
    ServerTimeoutError,
    TCPConnector,
)
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from stretto_client.fair_threads import Turns

SCHEMES = ("http", "https")
MAX_URL_CHARS = 2048
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
UNICAST = ipaddress.ip_network("2000::/3")  # RFC 4291: the only global addresses in use


class OutgoingError(Exception):
    """Failure of a request, with a message that contains nothing of the response."""


class PublicResolver(AbstractResolver):
    """Resolver that refuses a host if any of its addresses is outside the public Internet.

    The connection is opened to one of the addresses that have been checked.
    """

    def __init__(self, threads: Turns):
        self._threads = threads

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        look_up = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
        infos = await self._threads.run(look_up)
        places = [
            (str(sockaddr[0]), int(sockaddr[1]), address_family, proto)
            for address_family, _, proto, _, sockaddr in infos
        ]
        if not all(is_public(ipaddress.ip_address(address.partition("%")[0])) for address, *_ in places):
            raise OutgoingError("the host's address is not public")
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(hostname=host, host=address, port=number, family=address_family, proto=proto, flags=flags)
            for address, number, address_family, proto in places
        ]

    async def close(self) -> None:
        pass


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return True if an address, and any IPv4 address that it contains, belongs to the public Internet."""
    inner: list[IPv4Address | IPv6Address | None] = [address]
    if isinstance(address, IPv6Address):
        if address in NAT64:
            inner = [IPv4Address(int(address) & 0xFFFF_FFFF)]
        elif address not in UNICAST:
            return False
        inner += [address.sixtofour, *(address.teredo or ())]
    return all(ip.is_global and not ip.is_multicast for ip in inner if ip is not None)


def web_url(text: str) -> URL:
    """Parse an `http` or `https` URL with a host; raise ValueError if it is invalid, has a user, or is too long."""
    if len(text) > MAX_URL_CHARS:  # checked before parsing, because the parser's time and caches grow with the length
        raise ValueError(f"expected a URL of at most {MAX_URL_CHARS} characters")
    is_valid = text.isascii() and text.isprintable() and " " not in text
    try:
        url = URL(text)
        is_valid = is_valid and url.scheme in SCHEMES and bool(url.host) and bool(url.port)
        (url.raw_host or "").encode("idna")  # raises UnicodeError for a name that cannot be looked up
    except ValueError:
        is_valid = False
    if not is_valid or not url.user is url.password is None:
        raise ValueError("expected an http:// or https:// URL with a host and without a user")
    return URL(text, encoded=True).with_fragment(None)  # sent unchanged, because a signature may cover it


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
        body: JSON for a POST request; None for GET.
        stall_s: Maximum time for the connection, and until further bytes arrive, in seconds.
        total_s: Maximum time for the whole response, in seconds; None for no limit.

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
    except ServerTimeoutError:
        raise OutgoingError(f"no answer, or no further part of it, for {stall_s:g} s") from None
    except TimeoutError:
        raise OutgoingError(f"the response was not complete after {total_s} s") from None
    except (ClientConnectorDNSError, InvalidURL):
        raise OutgoingError("the host has no address") from None
    except (ServerDisconnectedError, ClientPayloadError):
        raise OutgoingError("the connection ended before the response was complete") from None
    except ClientResponseError:
        raise OutgoingError("the response is not valid HTTP") from None
    except ClientError:
        raise OutgoingError("the connection failed") from None
