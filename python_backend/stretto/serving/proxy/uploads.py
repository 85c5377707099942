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
from itertools import islice
from pathlib import Path

from stretto.serving.proxy.peers import in_excess

MAX_CALLS = 2048  # that may still send: half of what a host can have
MAX_RESIDENT_BYTES = 1 << 30
KEPT_BYTES = 64 << 20  # that malloc may keep of what came and went
LOOK_S, LOOKS = 0.25, 12  # looks from one time that memory is given back to the next
ENDED = "full: too much is being sent at a time, and this call was not complete"


@dataclass(slots=True, eq=False)
class Upload:
    """A call that may still send. num_sent: its messages that have come whole; since: when the last of them did."""

    end: Callable[[], object]
    host: str
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
    """All of them.

    Where they are too many, those of the host that has the most are ended first; where they hold too much, those that
    have never sent a whole message. Among these in either case the oldest.
    """

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
        self._open.add(upload)
        if len(self._open) > self._max_calls:
            self._end(self._open, 1, last=upload)
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
        """End some of them where this process holds too much; give back what came and went, once nothing comes.

        It is a quarter of those that have never sent a whole message, or of all where there are none such.
        """
        before, self._seen = self._seen, self._resident()
        self._looks += 1
        is_much = self._seen > self._max_resident_bytes
        is_left = before == self._seen > self._at_start + KEPT_BYTES and self._looks >= LOOKS
        if is_much or is_left:
            give_back()
            self._seen, self._looks = self._resident(), 0
            if self._seen > self._max_resident_bytes:
                suspects = {upload for upload in self._open if not upload.num_sent} or self._open
                self._end(suspects, 1 + len(suspects) // 4)

    def _end(self, among: set[Upload], count: int, last: Upload | None = None) -> None:
        order = in_excess(among, lambda each: each.host, lambda each: (each is last, each.num_sent > 0, each.since))
        for upload in islice(order, count):
            self._open.discard(upload)
            upload.is_ended = True
            upload.end()
