"""Limits for shared resources that are fair among client hosts."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class FairLimit:
    """Fair-share limit: a client host may hold no more units than remain free.

    A single host can hold at most half of `limit`, so none can exhaust it (dynamic threshold with alpha = 1; Choudhury
    and Hahne, Dynamic queue length thresholds for shared-memory packet switches, 1998).
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = Counter[str]()

    @property
    def held(self) -> int:
        """Number of units held by all hosts together."""
        return self._taken.total()

    def held_by(self, host: str) -> int:
        """Return the number of units held by `host`."""
        return self._taken[host]

    def has_free(self, host: str, amount: int = 1) -> bool:
        """Return True if `host` may take `amount` more units."""
        return self._taken[host] + amount <= self.limit - self.held

    def acquire(self, host: str, amount: int = 1) -> None:
        """Add `amount` to the number of units held by `host`."""
        self._taken[host] += amount

    def release(self, host: str, amount: int = 1) -> None:
        """Release `amount` units held by `host`."""
        self._taken[host] -= amount
        if not self._taken[host]:
            del self._taken[host]  # drop empty entries: the number of distinct hosts is unbounded

    @contextmanager
    def reserving(self, host: str) -> Iterator[bool]:
        """If a unit is free, hold it for `host` during the `with` block and yield True; else yield False."""
        is_left = self.has_free(host)
        if is_left:
            self.acquire(host)
        try:
            yield is_left
        finally:
            if is_left:
                self.release(host)
