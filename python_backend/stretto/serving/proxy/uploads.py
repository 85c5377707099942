"""Calls that may still send: where they are too many, or hold too much memory, some are ended.

gRPC gathers a message until it is whole, and tells nobody of it before. So what unfinished ones hold together is seen
in the memory of this process alone, and any call that may still send can be one of those that hold it.
"""

import asyncio
import ctypes
import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MAX_CALLS = 2048  # that may still send: half of all that there can be
MAX_RESIDENT_BYTES = 1 << 30
KEPT_BYTES = 64 << 20  # that malloc may keep of what came and went
LOOK_S, LOOKS = 0.25, 12  # looks from one time that memory is given back to the next
ENDED = "unavailable: too much is being sent at a time, and this call was not complete"


@dataclass(slots=True, eq=False)
class Upload:
    """A call that may still send. num_sent: its messages that have come whole; since: when the last of them did."""

    end: Callable[[], object]
    num_sent: int = 0
    since: float = field(default_factory=time.monotonic)
    is_ended: bool = False

    def came(self) -> None:
        """A message of it has come."""
        self.num_sent += 1
        self.since = time.monotonic()


def resident_bytes() -> int:
    """The memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Free what only the errors of refused calls still hold, and have malloc return to the system what is free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


class Uploads:
    """All of them. Those that have never sent a whole message are ended first, the oldest of them before the others."""

    def __init__(
        self,
        max_calls: int = MAX_CALLS,
        max_resident_bytes: int = MAX_RESIDENT_BYTES,
        resident: Callable[[], int] = resident_bytes,
    ) -> None:
        self._max_calls, self._max_resident_bytes, self._resident = max_calls, max_resident_bytes, resident
        self._open: set[Upload] = set()
        self._seen = self._at_start = resident()
        self._looks = 0

    @contextmanager
    def entry(self, upload: Upload) -> Iterator[None]:
        """One more, for as long as it may send; who comes gives way to nobody who is there and silent."""
        if len(self._open) >= self._max_calls:
            self._end(1)
        self._open.add(upload)
        try:
            yield
        finally:
            self._open.discard(upload)

    async def watch(self) -> None:
        """Look again and again at what this process holds."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        """End a quarter of them where this process holds too much; give back what came and went, once nothing comes."""
        before, self._seen = self._seen, self._resident()
        self._looks += 1
        is_much = self._seen > self._max_resident_bytes
        is_left = before == self._seen > self._at_start + KEPT_BYTES and self._looks >= LOOKS
        if is_much or is_left:
            give_back()
            self._seen, self._looks = self._resident(), 0
            if self._seen > self._max_resident_bytes:
                self._end(1 + len(self._open) // 4)

    def _end(self, count: int) -> None:
        for upload in sorted(self._open, key=lambda upload: (upload.num_sent > 0, upload.since))[:count]:
            self._open.discard(upload)
            upload.is_ended = True
            upload.end()
