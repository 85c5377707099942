"""Limit on the connections of the gRPC server, within the limit on open files."""

import asyncio
import ipaddress
import os
import resource
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import unquote

from stretto_contract.limits import FairLimit, eviction_order, host_of

MAX_CONNECTIONS = 8192
MAX_PAGE_CONNECTIONS = 256  # of each HTTP port
FILES_PER_PAGE = 2  # a connection, and one to Triton
OTHER_FILES = 64
MIN_CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Maximum numbers of connections.

    Attributes:
        page: Connections of each of the two HTTP ports.
    """

    grpc: int = MAX_CONNECTIONS
    page: int = MAX_PAGE_CONNECTIONS
    num_files: int = 0

    @classmethod
    def from_system(cls) -> "ConnectionLimits":
        """Raise the soft limit on open files to the hard one, and return the numbers of connections that it permits."""
        _, num_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (num_files, num_files))
        return cls() if num_files == resource.RLIM_INFINITY else cls.within(num_files)

    @classmethod
    def within(cls, num_files: int) -> "ConnectionLimits":
        """Return the numbers of connections for a number of open files. The HTTP ports get at most a quarter."""
        left = num_files - OTHER_FILES
        page = min(MAX_PAGE_CONNECTIONS, max(MIN_CONNECTIONS, left // (8 * FILES_PER_PAGE)))
        grpc = min(MAX_CONNECTIONS, max(MIN_CONNECTIONS, left - 2 * FILES_PER_PAGE * page))
        return cls(grpc, page, num_files)

    def warning(self) -> str:
        """Return a line that reports lowered limits; empty if there are none."""
        if (self.grpc, self.page) == (MAX_CONNECTIONS, MAX_PAGE_CONNECTIONS):
            return ""
        expected = MAX_CONNECTIONS + 2 * FILES_PER_PAGE * MAX_PAGE_CONNECTIONS + OTHER_FILES
        return (
            f"[proxy] at most {self.grpc} gRPC connections instead of {MAX_CONNECTIONS}, and {self.page} instead of"
            f" {MAX_PAGE_CONNECTIONS} to each HTTP port, because the hard limit on open files is {self.num_files}"
            f" (ulimit -Hn); expected at least {expected}"
        )


CHECK_S = 0.1
Address = tuple[str, int]


class Connections:
    """Connections of the gRPC server's port, some of which are closed so that new ones can be accepted.

    gRPC keeps idle connections for ten minutes. While the connections exceed three quarters of the limit, the host with
    the most idle ones therefore loses the one that has been idle longest. A host may have at most as many busy
    connections (with a call) as remain free. Further connections wait in the kernel until a file is closed.
    """

    def __init__(self, limits: ConnectionLimits, host: str = "127.0.0.1") -> None:
        self._most = limits.grpc * 3 // 4
        self._num_files = limits.num_files
        self._host = host
        self._num_calls = Counter[Address]()
        self._busy = FairLimit(limits.grpc)
        self._idle_since: dict[Address, int] = {}  # number of the check that has found the connection first
        self._num_checks = 0

    @contextmanager
    def call(self, peer: str) -> Iterator[bool]:
        """Count a call during the `with` block; yield False if its host has too many busy connections."""
        address = peer_address(peer)
        host = host_of(address[0])
        if not self._num_calls[address]:
            if not self._busy.has_free(host):
                yield False
                return
            self._busy.acquire(host)
        self._num_calls[address] += 1
        self._idle_since.pop(address, None)
        try:
            yield True
        finally:
            self._num_calls[address] -= 1
            if not self._num_calls[address]:
                del self._num_calls[address]
                self._busy.release(host)

    async def watch(self, port: int) -> None:
        """Close idle connections to a port whenever too many are open, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_S)
            if len(files := open_files(self._num_files)) <= self._most:
                self._idle_since.clear()
            elif self.close_idle(port, files):
                await knock(self._host, port)

    def close_idle(self, port: int, files: Iterable[int]) -> int:
        """Close the idle connections to a port that exceed three quarters of the limit, and return their number.

        Connections that are seen for the first time stay, because a new one may be about to send its first call.
        """
        self._num_checks += 1
        file_by_address = {address: file for file in files if (address := client_of(file, port)) is not None}
        self._idle_since = {
            address: self._idle_since.get(address, self._num_checks)
            for address in file_by_address
            if not self._num_calls[address]
        }
        since = self._idle_since
        order = eviction_order(since, lambda address: host_of(address[0]), lambda address: (since[address], address))
        surplus = islice(order, max(0, len(file_by_address) - self._most))
        ended = [address for address in surplus if since[address] < self._num_checks]
        for address in ended:
            client_of(file_by_address[address], port, ended=address)
        return len(ended)


def open_files(num_files: int) -> Sequence[int]:
    """Return the descriptors of this process; all possible ones if no descriptor is left to list them."""
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return range(num_files)


def client_of(descriptor: int, port: int, ended: Address | None = None) -> Address | None:
    """Return the client's address if a descriptor is a connection to a port; None for any other or closed one.

    The connection of the client `ended` is shut down.
    """
    try:
        connection = socket.socket(fileno=descriptor)
    except OSError:
        return None
    try:
        if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.getsockname()[1] != port:
            return None
        address = address_of(connection.getpeername())
        if address == ended:
            connection.shutdown(socket.SHUT_RDWR)
        return address
    except OSError:  # the listening socket, or the client has closed it
        return None
    finally:
        connection.detach()  # it is gRPC's


async def knock(host: str, port: int) -> None:
    """Connect to a port of this process, because gRPC then accepts waiting connections at once, not after a second."""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(CHECK_S):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()


def address_of(name: tuple[Any, ...]) -> Address:
    """Return the IP address and port in a socket's name; for an IPv4 client of an IPv6 socket, its IPv4 address."""
    address = ipaddress.ip_address(name[0].partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address), name[1]


def peer_address(peer: str) -> Address:
    """Return the IP address and the port in gRPC's name of a connection, or the name and 0 if it has none."""
    host, _, port = unquote(peer).partition(":")[2].rpartition(":")
    try:
        return address_of((host.strip("[]"), int(port)))
    except ValueError:
        return peer, 0
