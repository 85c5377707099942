"""Limits on calls whose client is still sending: their number, memory, and the forwarding rate of large requests."""

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

from stretto.proxy.access import eviction_order
from stretto.proxy.infer_request import FULL, BadRequest

LARGE_BYTES = 1 << 20  # smaller messages never wait
BYTES_PER_CORE_S = 10_000_000
MAX_WAITING_BYTES = 256 << 20


class Pace:
    """Rate limiter that forwards large messages one at a time, at a fixed number of bytes per second.

    Args:
        bytes_per_s: Forwarding rate; None for BYTES_PER_CORE_S per core.
        max_waiting_bytes: Maximum total size of messages that wait.
    """

    def __init__(self, bytes_per_s: float | None = None, max_waiting_bytes: int = MAX_WAITING_BYTES) -> None:
        self._bytes_per_s = bytes_per_s or BYTES_PER_CORE_S * len(os.sched_getaffinity(0))
        self._max_waiting_bytes = max_waiting_bytes
        self._num_waiting_bytes = 0
        self._turn, self._next_s = asyncio.Lock(), 0.0

    async def wait(self, num_bytes: int) -> None:
        """Wait until a message of this size may be forwarded; small messages never wait.

        Args:
            num_bytes: Size of the message.

        Raises:
            BadRequest: If too many bytes are waiting already.
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


MAX_CALLS = 2048  # calls whose client may still send: half of one host's limit of calls
MAX_RESIDENT_BYTES = 1 << 30
KEPT_BYTES = 64 << 20  # free memory that malloc may keep
LOOK_S, LOOKS = 0.25, 12  # minimum number of polls between returns of free memory
ENDED = "full: too many bytes are being sent at once, and this call was incomplete"


@dataclass(slots=True, eq=False)
class Upload:
    """Call whose client may still be sending.

    Attributes:
        end: Ends the call.
        host: Host of the client.
        num_sent: Number of complete messages received.
        since: Monotonic time of the last complete message, or of the start of the call, in seconds.
        is_ended: True if the call was ended because of a limit.
    """

    end: Callable[[], object]
    host: str
    num_sent: int = 0
    since: float = field(default_factory=time.monotonic)
    is_ended: bool = False

    def note_message(self) -> None:
        """Record that a complete message has been received."""
        self.num_sent += 1
        self.since = time.monotonic()


def resident_bytes() -> int:
    """Return the resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Return free memory to the system, after collecting the garbage of ended calls."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


class Uploads:
    """Registry of calls whose client may still be sending.

    If there are too many, a call of the host with the most calls is ended. Calls without a complete message are ended
    first, and among equals the oldest. If they use too much memory, a quarter of the calls without a complete message
    is ended in the same order.

    Args:
        max_calls: Maximum number of calls.
        max_resident_bytes: Limit on the resident memory of this process.
        resident: Returns the resident memory in bytes.
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
        """Register a call for the duration of the `with` block.

        Above the limit, one call is ended: this one only if there is no other choice.
        """
        self._open.add(upload)
        if len(self._open) > self._max_calls:
            self._end(self._open, 1, last=upload)
        try:
            yield
        finally:
            self._open.discard(upload)

    async def watch(self) -> None:
        """Call `poll` every LOOK_S seconds."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.poll()

    def poll(self) -> None:
        """End some calls if this process uses too much memory; return free memory to the system when traffic is idle.

        A quarter of the calls without a complete message is ended or, if there are no such calls, a quarter of all
        calls.
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
        order = eviction_order(
            among, lambda each: each.host, lambda each: (each is last, each.num_sent > 0, each.since)
        )
        for upload in islice(order, count):
            self._open.discard(upload)
            upload.is_ended = True
            upload.end()
