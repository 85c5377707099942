"""Hosts from which the gateway fetches recordings that a request names by URL."""

import re
import time
from collections.abc import Callable, Sequence

from aiohttp.abc import AbstractResolver
from yarl import URL

from stretto_client.fair_threads import Turns
from stretto_gateway.admission import Admission
from stretto_gateway.answers import mismatch, refused
from stretto_gateway.config import Limits
from stretto_gateway.outgoing import SCHEMES, OutgoingError, PublicResolver, sent, web_url

ANY = "*"
HOST = re.compile(r"[\w.:-]+", re.ASCII)
# A name in the public DNS. Its last part begins with a letter, unlike that of any spelling of an address.
NAME = re.compile(r"(?:[\w-]+\.)+[a-z][\w-]*", re.ASCII)


class AudioHosts:
    """Hosts from which recordings are fetched.

    Args:
        names: `HOST` for the standard ports of a host, `HOST:PORT` for another port, or `*` for the standard ports of
            all hosts whose addresses are public. If there are none, no recording is fetched.
    """

    def __init__(self, names: Sequence[str], limits: Limits):
        self._is_any = ANY in names
        self._limits = limits
        self._fetching = Admission(limits.max_fetching, limits.max_waiting, lambda _: None)
        self._threads = Turns(limits.max_fetching, "resolver", time.monotonic)
        self._places = {place_of(name) for name in names if name != ANY}

    def is_fetched(self, text: str) -> bool:
        """Return True if a field's text is a URL, and there are hosts from which recordings are fetched."""
        return (self._is_any or bool(self._places)) and text.partition("://")[0].lower() in SCHEMES

    async def fetch(self, param: str, text: str, keep: Callable[[int], None]) -> bytes:
        """Return the recording at a URL, without following redirects; raise ApiError if that is not possible.

        Args:
            keep: Function that accounts for each number of bytes in memory.
        """
        try:
            url = web_url(text)
        except ValueError as error:
            raise refused(param, str(error).removeprefix("expected "), text) from None
        resolver = self._resolver(param, url)
        limits = self._limits
        data = bytearray()
        try:
            async with (
                self._fetching.slot(),
                sent(url, None, {}, limits.stall_s, limits.upload_s, resolver) as response,
            ):
                if response.status != 200:
                    raise OutgoingError(f"status {response.status}")
                async for received in response.content.iter_any():
                    if len(data) + len(received) > limits.max_voice_bytes:
                        raise mismatch(param, f"at most {limits.max_voice_bytes} bytes", "more")
                    keep(len(received))
                    data += received
        except OutgoingError as error:
            raise mismatch(param, "a recording at the URL", f"an error: {error}") from None
        return bytes(data)

    def _resolver(self, param: str, url: URL) -> AbstractResolver | None:
        """Return the resolver for a URL's host, None for the system's; raise ApiError if the host is not allowed."""
        host = (url.raw_host or "").lower()
        is_standard = url.is_default_port()
        if (host, url.port) in self._places or (is_standard and (host, None) in self._places):
            return None
        if self._is_any and is_standard and NAME.fullmatch(host):
            return PublicResolver(self._threads)
        raise refused(param, "a URL whose host the gateway's --audio-host allows", str(url))


def place_of(text: str) -> tuple[str, int | None]:
    """Return the host and the port (None: standard) of `HOST` or `HOST:PORT`; raise ValueError for other text."""
    try:
        url = web_url(f"http://{text}")
        is_valid = url.path == "/" and not url.query_string and HOST.fullmatch(url.raw_host or "") is not None
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ValueError(f"--audio-host: expected HOST, HOST:PORT or *, got {text!r}")
    return (url.raw_host or "").lower(), url.explicit_port
