"""A queue in which hosts take turns: of each the first comes first, and nobody waits behind all that another sends."""

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Items of hosts, to be taken one by one, by any thread."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Item]] = {}  # whose turn is next comes first
        self._changed = threading.Condition()
        self._is_closed = False

    def put(self, host: str, item: Item) -> None:
        """Add an item of `host`."""
        with self._changed:
            self._waiting.setdefault(host, deque()).append(item)
            self._changed.notify()

    def get(self) -> Item | None:
        """The next item, once there is one; None when there is none left and none will come."""
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
        """Nothing will be added."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
