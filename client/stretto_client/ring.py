"""Samples through memory that client and server share, for clients on the server's own host.

Triton overwrites a registered output region with every response of a stream. Here the client gives the server a ring of
slots: the server fills slots and says in the event which; the client copies them out and counts them as released. A
full ring makes the server wait.

    header, 8 int64 words        MAGIC | slots | bytes per slot | released | open | …
    slots, from byte HEADER on   behind the header in system memory, or alone in memory of a GPU

`released` is the client's, `open` the server's: 1 while it has the memory of a GPU open, which CUDA does not let the
client free meanwhile. It is 0 again before the last event is sent.
"""

import asyncio
import base64
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from stretto_client.regions import CudaRegion, Memory, SystemRegion

MAGIC = int.from_bytes(b"STRRING1", "little")
HEADER = 4096  # a page
PREFIX = "stretto_ring"
_SLOTS, _SLOT_BYTES, _RELEASED, _OPEN = 1, 2, 3, 4
PATIENCE_S, POLL_S = 5.0, 0.01  # a server lets go within a second of an utterance's end, or has ended itself


@dataclass(frozen=True, slots=True)
class RingSize:
    """Of one utterance's ring: 64 slots of 16 KiB hold 10 s of float32 at 24 kHz."""

    slots: int = 64
    slot_bytes: int = 1 << 14

    def __post_init__(self) -> None:
        if self.slots < 1 or self.slot_bytes < 1 or self.slot_bytes % 8:
            raise ValueError(f"a ring needs slots of a multiple of 8 bytes, got {self.slots} of {self.slot_bytes}")


class Ring:
    """The client's end."""

    def __init__(self, memory: Memory, size: RingSize):
        self._size, self._released = size, 0
        payload = size.slots * size.slot_bytes
        self._header = SystemRegion(PREFIX, HEADER + (payload if memory == "system" else 0))
        self._device = CudaRegion(PREFIX, payload) if memory == "cuda" else None
        self._words = self._header.words
        self._words[_SLOTS], self._words[_SLOT_BYTES], self._words[_RELEASED] = size.slots, size.slot_bytes, 0
        self._words[0] = MAGIC

    def option(self) -> dict[str, Any]:
        """What the server must know to open it: the value of `options.output.ring`."""
        option: dict[str, Any] = {"name": self._header.name}
        if self._device is not None:
            option |= {"cuda_handle": base64.b64encode(self._device.handle).decode(), "device": self._device.device}
        return option

    def take(self, record: dict[str, Any]) -> np.ndarray:
        """A copy of the samples that an event's `ring` record tells of; their slots are free from here on.

        record: `slot`, the first one, counted since the start; `slots`, how many; `samples`, and their `dtype`.
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
        """Whether the server has no memory of a GPU open."""
        return self._words[_OPEN] == 0

    def withdraw(self) -> None:
        """Let no server open it from now on."""
        self._words[0] = 0

    async def until_free(self) -> None:
        """Withdraw it, and return when the server has let it go, or has had the time to."""
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
        """Free the memory, which the server has let go (`until_free`)."""
        self._words.release()
        self._header.close()
        if self._device is not None:
            self._device.close()
