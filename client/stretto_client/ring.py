"""Ring buffer for samples in shared memory, for clients on the server's host.

Triton overwrites a registered output region with every response of a stream. Instead, the client gives the server a
ring of slots. The server fills slots and names them in the event; the client copies them and counts them as released.
If the ring is full, the server waits.

    header, 8 int64 words        MAGIC | slots | bytes per slot | released | open | …
    slots, from byte HEADER on   after the header in system memory, or alone in GPU memory

The client writes `released`, the server `open`. `open` is 1 while the server has the GPU memory open, because CUDA does
not let the client free it meanwhile. It is 0 again before the last event is sent.
"""

import asyncio
import base64
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from stretto_client.regions import CudaRegion, Memory, SystemRegion

MAGIC = int.from_bytes(b"STRRING1", "little")
HEADER = 4096  # bytes, one page
PREFIX = "stretto_ring"
_SLOTS, _SLOT_BYTES, _RELEASED, _OPEN = 1, 2, 3, 4
PATIENCE_S, POLL_S = 5.0, 0.01  # a live server releases the ring within a second after the utterance


@dataclass(frozen=True, slots=True)
class RingSize:
    """Size of one utterance's ring: 64 slots of 16 KiB hold 10 s of float32 samples at 24 kHz."""

    slots: int = 64
    slot_bytes: int = 1 << 14

    def __post_init__(self) -> None:
        if self.slots < 1 or self.slot_bytes < 1 or self.slot_bytes % 8:
            raise ValueError(f"a ring needs slots of a multiple of 8 bytes, got {self.slots} of {self.slot_bytes}")


class Ring:
    """Client side of the ring."""

    def __init__(self, memory: Memory, size: RingSize):
        self._size, self._released = size, 0
        payload = size.slots * size.slot_bytes
        self._header = SystemRegion(PREFIX, HEADER + (payload if memory == "system" else 0))
        self._device = CudaRegion(PREFIX, payload) if memory == "cuda" else None
        self._words = self._header.words
        self._words[_SLOTS], self._words[_SLOT_BYTES], self._words[_RELEASED] = size.slots, size.slot_bytes, 0
        self._words[0] = MAGIC

    def option(self) -> dict[str, Any]:
        """Return the value of `options.output.ring`, with which the server opens the ring."""
        option: dict[str, Any] = {"name": self._header.name}
        if self._device is not None:
            option |= {"cuda_handle": base64.b64encode(self._device.handle).decode(), "device": self._device.device}
        return option

    def take(self, record: dict[str, Any]) -> np.ndarray:
        """Return a copy of the samples that an event's `ring` record refers to, and release their slots.

        Args:
            record: `slot`: the first slot, counted since the start. `slots`: number of slots. `samples`: number of
                samples. `dtype`: their type.
        """
        if record["slot"] != self._released:
            raise ValueError(f"the event names slot {record['slot']}, but {self._released} is next")
        size, dtype = self._size, np.dtype(record["dtype"])
        left = record["samples"] * dtype.itemsize
        parts = [np.empty(0, np.uint8)]
        for slot in range(record["slot"], record["slot"] + record["slots"]):
            used = min(left, size.slot_bytes)
            parts.append(self._read(slot % size.slots * size.slot_bytes, used))
            left -= used
        self._released = record["slot"] + record["slots"]
        self._words[_RELEASED] = self._released
        return np.concatenate(parts).view(dtype)

    @property
    def is_free(self) -> bool:
        """True if the server does not have GPU memory open."""
        return self._words[_OPEN] == 0

    def withdraw(self) -> None:
        """Invalidate the ring, so that no server opens it from now on."""
        self._words[0] = 0

    async def until_free(self) -> None:
        """Withdraw the ring and wait until the server has released it, at most PATIENCE_S seconds."""
        self.withdraw()
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while not self.is_free:
                    await asyncio.sleep(POLL_S)

    def _read(self, offset: int, byte_size: int) -> np.ndarray:
        if self._device is not None:
            return self._device.read(offset, byte_size)
        return self._header.read(HEADER + offset, byte_size)

    def close(self) -> None:
        """Free the memory, after `until_free`."""
        self._words.release()
        self._header.close()
        if self._device is not None:
            self._device.close()
