"""Large messages go on at a pace that leaves the processor to speech that is being made.

On its way through the proxy, Triton and the preprocessor a message is copied a dozen times, and the models compute on
the same cores.
"""

import asyncio
import os

from stretto.serving.proxy.infer_request import FULL, BadRequest

LARGE_BYTES = 1 << 20  # what is smaller never waits
BYTES_PER_CORE_S = 10_000_000
MAX_WAITING_BYTES = 256 << 20


class Pace:
    """Lets large messages go on one after the other; after one, the next when its bytes have had their time."""

    def __init__(self, bytes_per_s: float | None = None, max_waiting_bytes: int = MAX_WAITING_BYTES) -> None:
        self._bytes_per_s = bytes_per_s or BYTES_PER_CORE_S * len(os.sched_getaffinity(0))
        self._max_waiting_bytes = max_waiting_bytes
        self._num_waiting_bytes = 0
        self._turn, self._next_s = asyncio.Lock(), 0.0

    async def wait(self, num_bytes: int) -> None:
        """Until a message of so many bytes may go on; BadRequest where too much waits already."""
        if num_bytes <= LARGE_BYTES:
            return
        if self._num_waiting_bytes + num_bytes > self._max_waiting_bytes:
            raise BadRequest(
                f"{self._num_waiting_bytes} bytes of large requests wait, of at most "
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
