"""Rate limit for large messages, so that they do not slow down active streams.

A message is copied a dozen times on its way through the proxy, Triton and the preprocessor, and the models compute on
the same cores.
"""

import asyncio
import os

from stretto.serving.proxy.infer_request import FULL, BadRequest

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
