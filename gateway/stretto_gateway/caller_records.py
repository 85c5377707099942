"""Records of recent requests, each available only to the caller of its request."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Generic, TypeVar

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Stored(Generic[Record]):
    """A record, its size, and the time at which it was added."""

    record: Record
    size: int
    added_s: float


class CallerRecords(Generic[Record]):
    """Records by caller and request id, which a response has in the header `x-request-id`.

    If there is no space, the oldest records of the caller with the largest total size are dropped.

    Args:
        capacity: Maximum total size of all records.
        max_age_s: Maximum age of a record, in seconds; older records are not found.
    """

    def __init__(self, capacity: int, max_age_s: float = inf, clock: Callable[[], float] = time.monotonic):
        self._capacity = capacity
        self._max_age_s = max_age_s
        self._clock = clock
        self._records: dict[str, OrderedDict[str, Stored[Record]]] = {}
        self._sizes: dict[str, int] = {}

    def find(self, owner: str, request_id: str) -> Record | None:
        """Return the record of one of the caller's own requests; None if there is none, or it is too old."""
        of_owner = self._records.get(owner)
        stored = None if of_owner is None else of_owner.get(request_id)
        if stored is None or self._clock() - stored.added_s > self._max_age_s:
            return None
        return stored.record

    def add(self, owner: str, request_id: str, record: Record, size: int = 1) -> None:
        """Add a record, unless it is larger than the capacity."""
        if size > self._capacity:
            return
        self._forget_old(owner)
        while sum(self._sizes.values()) + size > self._capacity:
            self._forget_oldest(max(self._sizes, key=self._sizes.__getitem__))
        self._records.setdefault(owner, OrderedDict())[request_id] = Stored(record, size, self._clock())
        self._sizes[owner] = self._sizes.get(owner, 0) + size

    def _forget_old(self, owner: str) -> None:
        while owner in self._records:
            oldest = next(iter(self._records[owner].values()))
            if self._clock() - oldest.added_s <= self._max_age_s:
                return
            self._forget_oldest(owner)

    def _forget_oldest(self, owner: str) -> None:
        _, stored = self._records[owner].popitem(last=False)
        self._sizes[owner] -= stored.size
        if not self._records[owner]:
            del self._records[owner]
            del self._sizes[owner]
