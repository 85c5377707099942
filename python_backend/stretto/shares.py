"""Who may have how much of what is bounded for all."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Shares:
    """Of `limit`, a host may have as much as is left over: alone half of it, and nobody can take it all.

    (Choudhury and Hahne, Dynamic queue length thresholds for shared-memory packet switches, 1998, with alpha = 1.)
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = Counter[str]()

    @property
    def taken(self) -> int:
        """What all hosts have."""
        return self._taken.total()

    def taken_by(self, host: str) -> int:
        """What one has."""
        return self._taken[host]

    def is_left(self, host: str, amount: int = 1) -> bool:
        """Whether there is so much more for it."""
        return self._taken[host] + amount <= self.limit - self.taken

    def take(self, host: str, amount: int = 1) -> None:
        """It has so much more."""
        self._taken[host] += amount

    def give_back(self, host: str, amount: int = 1) -> None:
        """And so much less."""
        self._taken[host] -= amount
        if not self._taken[host]:
            del self._taken[host]  # of hosts there is no end

    @contextmanager
    def taking(self, host: str) -> Iterator[bool]:
        """Take one, and give it back; whether there is one for this host."""
        is_left = self.is_left(host)
        if is_left:
            self.take(host)
        try:
            yield is_left
        finally:
            if is_left:
                self.give_back(host)
