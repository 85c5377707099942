"""Rules of the limits that clients share: fair shares, the identity of a client, and which client must yield.

The server, its proxy and the gateway use these rules; docs/limits.md lists the limits themselves.
"""

import heapq
import ipaddress
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

T = TypeVar("T")
IN_FLIGHT = "sequences are already in flight"  # part of a refusal by the models, by which the proxy recognises it
IPV6_HOST_BITS = 64  # network of one customer, as assigned by providers (RFC 6177)


class FairLimit:
    """Fair-share limit: a client may take units only if it then holds no more than were free before.

    A client is a host (`host_of`) or, in a gateway with keys, the owner of a key. A single one that
    takes unit after unit gets half of `limit`, so none can exhaust it (dynamic threshold with alpha = 1; Choudhury and
    Hahne, Dynamic queue length thresholds for shared-memory packet switches, 1998).
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = Counter[str]()

    @property
    def held(self) -> int:
        return self._taken.total()

    def held_by(self, host: str) -> int:
        return self._taken[host]

    def has_free(self, host: str, amount: int = 1) -> bool:
        """Return True if `host` may take `amount` more units."""
        return self._taken[host] + amount <= self.limit - self.held

    def acquire(self, host: str, amount: int = 1) -> None:
        self._taken[host] += amount

    def release(self, host: str, amount: int = 1) -> None:
        self._taken[host] -= amount
        if not self._taken[host]:
            del self._taken[host]  # drop empty entries: the number of distinct hosts is unbounded

    @contextmanager
    def reserving(self, host: str) -> Iterator[bool]:
        """Hold a unit for `host` during the `with` block if one is free; yield True if so, else False."""
        is_left = self.has_free(host)
        if is_left:
            self.acquire(host)
        try:
            yield is_left
        finally:
            if is_left:
                self.release(host)


class Rotation(Generic[T]):
    """Queue that takes an item of each host in turn, so that one host cannot delay all others."""

    def __init__(self) -> None:
        self._items: dict[str, deque[T]] = {}  # in the order in which hosts are served

    def __len__(self) -> int:
        return sum(map(len, self._items.values()))

    def put(self, host: str, item: T) -> None:
        self._items.setdefault(host, deque()).append(item)

    def pop(self, is_eligible: Callable[[str], bool] = lambda host: True) -> T | None:
        """Remove and return the next item; None if no host with items is eligible."""
        host = next(filter(is_eligible, self._items), None)
        if host is None:
            return None
        items = self._items.pop(host)
        item = items.popleft()
        if items:
            self._items[host] = items
        return item

    def remove(self, host: str, item: T) -> bool:
        """Remove an item of `host`; return False if it is not waiting."""
        items = self._items.get(host)
        if items is None or item not in items:
            return False
        items.remove(item)
        if not items:
            del self._items[host]
        return True


def host_of(address: str) -> str:
    """Return the unit by which clients are counted: an IPv4 address or an IPv6 /64 network.

    A single host can use any number of addresses in its IPv6 network.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, IPV6_HOST_BITS), strict=False))


def eviction_order(members: Iterable[T], host: Callable[[T], str], rank: Callable[[T], Any]) -> Iterator[T]:
    """Yield members in the order in which they should be evicted.

    Each one is the lowest-ranked member of the host that has the most members left.
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
