"""Round-robin queue over hosts; the items of one host are in FIFO order."""

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Thread-safe queue that serves hosts in turn, so that one host cannot delay all others."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Item]] = {}  # in order of turns; the next host is first
        self._changed = threading.Condition()
        self._is_closed = False

    def put(self, host: str, item: Item) -> None:
        """Add an item of `host`."""
        with self._changed:
            self._waiting.setdefault(host, deque()).append(item)
            self._changed.notify()

    def get(self) -> Item | None:
        """Return the next item, waiting for one if necessary; None once the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if not self._waiting:
                return None
            host = next(iter(self._waiting))
            items = self._waiting.pop(host)
            item = items.popleft()
            if items:
                self._waiting[host] = items
            return item

    def close(self) -> None:
        """Close the queue to new items."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
