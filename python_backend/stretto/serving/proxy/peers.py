"""Client hosts, and the order of eviction from a shared resource: the host with the largest use first."""

import heapq
import ipaddress
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar
from urllib.parse import unquote

T = TypeVar("T")
IPV6_HOST_BITS = 64  # network of one customer, as assigned by providers (RFC 6177)


def host_of_call(peer: str) -> str:
    """Return the host of a gRPC peer such as `ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000`."""
    kind, _, place = unquote(peer).partition(":")
    return host_of(place.rpartition(":")[0].strip("[]")) if kind in ("ipv4", "ipv6") else peer


def host_of(address: str) -> str:
    """Return the unit by which an address is counted: the IPv4 address, or the IPv6 /64 network.

    A host in an IPv6 network can have any number of addresses.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, IPV6_HOST_BITS), strict=False))


def in_excess(members: Iterable[T], host: Callable[[T], str], rank: Callable[[T], Any]) -> Iterator[T]:
    """Yield members in the order of eviction.

    Each is the lowest-ranked member of the host that has the most members left.

    Args:
        members: Members to order.
        host: Returns a member's host.
        rank: Returns a member's sort key; low ranks are evicted first.
    """
    of_host: dict[str, list[T]] = {}
    for member in sorted(members, key=rank, reverse=True):
        of_host.setdefault(host(member), []).append(member)
    heap = [(-len(left), rank(left[-1]), name) for name, left in of_host.items()]
    heapq.heapify(heap)
    while heap:
        *_, name = heapq.heappop(heap)
        left = of_host[name]
        yield left.pop()
        if left:
            heapq.heappush(heap, (-len(left), rank(left[-1]), name))
