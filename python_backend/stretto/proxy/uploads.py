"""Limits on calls that still send: number, memory, and forwarding rate of large requests."""

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

from stretto.proxy.access import in_excess
from stretto.proxy.infer_request import FULL, BadRequest

LARGE_BYTES = 1 << 20  # smaller messages never wait
BYTES_PER_CORE_S = 10_000_000
MAX_WAITING_BYTES = 256 << 20


class Pace:
    """Rate limiter that forwards large messages one at a time, at a fixed number of bytes per second."""

    def __init__(self, bytes_per_s: float | None = None, max_waiting_bytes: int = MAX_WAITING_BYTES) -> None:
        self._bytes_per_s = bytes_per_s or BYTES_PER_CORE_S * len(os.sched_getaffinity(0))
        self._max_waiting_bytes = max_waiting_bytes
        self._num_waiting_bytes = 0
        self._turn, self._next_s = asyncio.Lock(), 0.0

    async def wait(self, num_bytes: int) -> None:
        """Wait until a message may be forwarded; small messages never wait.

        Args:
            num_bytes: Size of the message.

        Raises:
            BadRequest: Too many bytes are waiting already.
        """
        if num_bytes <= LARGE_BYTES:
            return
        if self._num_waiting_bytes + num_bytes > self._max_waiting_bytes:
            raise BadRequest(
                f"{self._num_waiting_bytes} bytes of large requests are waiting, of at most "
                f"{self._max_waiting_bytes}; this one has {num_bytes}",
                kind=FULL,
            )
        self._num_waiting_bytes += num_bytes
        try:
            async with self._turn:
                loop = asyncio.get_running_loop()
                await asyncio.sleep(self._next_s - loop.time())
                self._next_s = loop.time() + num_bytes / self._bytes_per_s
        finally:
            self._num_waiting_bytes -= num_bytes


MAX_CALLS = 2048  # that may still send: half of one host's limit of calls
MAX_RESIDENT_BYTES = 1 << 30
KEPT_BYTES = 64 << 20  # free memory that malloc may keep
LOOK_S, LOOKS = 0.25, 12  # minimum number of polls between returns of free memory
ENDED = "full: too many bytes are being sent at once, and this call was incomplete"


@dataclass(slots=True, eq=False)
class Upload:
    """A call that may still send.

    Attributes:
        end: Ends the call.
        host: Host of the client.
        num_sent: Number of complete messages received.
        since: Monotonic time of the last complete message, or of the call's start.
        is_ended: True if the call was ended because of a limit.
    """

    end: Callable[[], object]
    host: str
    num_sent: int = 0
    since: float = field(default_factory=time.monotonic)
    is_ended: bool = False

    def came(self) -> None:
        """Record a complete message."""
        self.num_sent += 1
        self.since = time.monotonic()


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Collect garbage of refused calls, and have malloc return free memory to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


class Uploads:
    """Registry of calls that may still send.

    If there are too many calls, a call of the host with the most is ended: one without a complete message if possible,
    otherwise the oldest. If calls use too much memory, a quarter of those without any complete message is ended, each
    time the oldest of the host with the most.
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
        """Register a call while it may send; above the limit one is ended, the newest call last."""
        self._open.add(upload)
        if len(self._open) > self._max_calls:
            self._end(self._open, 1, last=upload)
        try:
            yield
        finally:
            self._open.discard(upload)

    async def watch(self) -> None:
        """Poll the memory of this process periodically."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.poll()

    def poll(self) -> None:
        """End some calls if this process holds too much memory; return free memory to the system once traffic is idle.

        A quarter of the calls without any complete message is ended, or of all calls if there are none of these.
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
