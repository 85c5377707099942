"""Memory shared with a server on the same host: regions, and rings for an utterance's samples."""

import asyncio
import base64
import ctypes
import fcntl
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc.aio import InferenceServerClient

from stretto_client.errors import ServerUnavailable
from stretto_client.schema import HANDLE_BYTES, RingOptions

Memory = Literal["system", "cuda"]


class SystemRegion:
    """System memory, which another process opens by name.

    Creating a region raises ServerUnavailable if there is too little memory, or none in /dev/shm.
    """

    def __init__(self, prefix: str, byte_size: int):
        try:
            self._memory = SharedMemory(f"{prefix}_{secrets.token_hex(8)}", create=True, size=byte_size)
        except OSError as error:
            raise ServerUnavailable(f"cannot create shared memory in /dev/shm: {error.strerror}") from None
        try:
            reserve(self._memory.name, byte_size)
        except OSError as error:
            self.close()
            raise ServerUnavailable(f"not enough shared memory for {byte_size} bytes: {error.strerror}") from None
        self.name, self._byte_size = self._memory.name, byte_size
        assert self._memory.buf is not None
        self._buffer: memoryview = self._memory.buf

    @property
    def words(self) -> memoryview:
        """The region as int64 words, whose stores are atomic. Release this view before `close`."""
        return self._buffer.cast("q")

    def write(self, data: NDArray[Any]) -> None:
        """Write an array at the beginning of the region."""
        self._buffer[: data.nbytes] = np.ascontiguousarray(data).view(np.uint8).data

    def read(self, offset: int, byte_size: int) -> NDArray[Any]:
        """Return a copy of the `byte_size` bytes at `offset`, as uint8."""
        return np.frombuffer(bytes(self._buffer[offset : offset + byte_size]), np.uint8)

    async def register(self, server: InferenceServerClient, headers: dict[str, str]) -> None:
        """Register the region as input memory; `headers` grant access to the server's memory API."""
        await server.register_system_shared_memory(self.name, f"/{self.name}", self._byte_size, headers=headers)

    async def unregister(self, server: InferenceServerClient, headers: dict[str, str]) -> None:
        """Unregister the region; `headers` grant access to the server's memory API."""
        await server.unregister_system_shared_memory(self.name, headers)

    def close(self) -> None:
        """Free the memory."""
        self._memory.close()
        self._memory.unlink()


def reserve(name: str, byte_size: int) -> None:
    """Allocate all memory of the file `name` now; raise OSError if there is not enough.

    Otherwise, a later write to a page that cannot be allocated would kill the writing process (SIGBUS).
    """
    descriptor = os.open(f"/dev/shm/{name}", os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, byte_size)
    finally:
        os.close(descriptor)


BLOCK = 1 << 21  # smaller allocations share a block of this size, and an IPC handle opens the whole block


class CudaRegion:
    """GPU memory, which the server's decoder opens through its IPC handle.

    It requires NVIDIA's `cuda-bindings`.
    """

    def __init__(self, byte_size: int, device: int = 0):
        from cuda.bindings import runtime

        self._runtime: Any = runtime
        self.device = device
        self._call("cudaSetDevice", device)
        (self._address,) = self._call("cudaMalloc", -(-byte_size // BLOCK) * BLOCK)
        (handle,) = self._call("cudaIpcGetMemHandle", self._address)
        # Read by address, because cuda-bindings 13.4.1 and later do not expose the only field of `cudaIpcMemHandle_t`.
        self.handle = ctypes.string_at(int(handle.getPtr()), HANDLE_BYTES)

    def read(self, offset: int, byte_size: int) -> NDArray[Any]:
        """Return a copy of the `byte_size` bytes at `offset`, as uint8."""
        data = np.empty(byte_size, np.uint8)
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDefault
        self._call("cudaSetDevice", self.device)
        self._call("cudaMemcpy", data.ctypes.data, self._address + offset, byte_size, kind)
        return data

    def close(self) -> None:
        """Free the memory."""
        self._call("cudaFree", self._address)

    def _call(self, function: str, *arguments: Any) -> tuple[Any, ...]:
        status, *results = getattr(self._runtime, function)(*arguments)
        if status != self._runtime.cudaError_t.cudaSuccess:
            raise MemoryError(f"{function}: {status!r}")
        return tuple(results)


MAGIC = int.from_bytes(b"STRRING1", "little")
HEADER = 4096  # bytes, one page
PREFIX = "stretto_ring"
_SLOTS, _SLOT_BYTES, _RELEASED, _OPEN = 1, 2, 3, 4
PATIENCE_S, POLL_S = 5.0, 0.01  # a running server releases the ring within a second after the utterance


@dataclass(frozen=True, slots=True)
class RingSize:
    """Size of an utterance's ring. The default, 64 slots of 16 KiB, holds 10 s of float32 samples at 24 kHz."""

    slots: int = 64
    slot_bytes: int = 1 << 14

    def __post_init__(self) -> None:
        if self.slots < 1 or self.slot_bytes < 1 or self.slot_bytes % 8:
            raise ValueError(f"a ring needs slots of a multiple of 8 bytes, got {self.slots} of {self.slot_bytes}")


class Ring:
    """Ring of sample slots in shared memory, as seen by the client.

    A lock on the header shows the server that this process exists.
    """

    def __init__(self, memory: Memory, size: RingSize):
        self._size, self._released = size, 0
        payload = size.slots * size.slot_bytes
        self._header = SystemRegion(PREFIX, HEADER + (payload if memory == "system" else 0))
        self._lock = os.open(f"/dev/shm/{self._header.name}", os.O_RDWR)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._device = CudaRegion(payload) if memory == "cuda" else None
        self._words = self._header.words
        self._words[_SLOTS], self._words[_SLOT_BYTES], self._words[_RELEASED] = size.slots, size.slot_bytes, 0
        self._words[0] = MAGIC

    def option(self) -> RingOptions:
        """Return the value for `options.output.ring` that lets the server open the ring."""
        if self._device is None:
            return {"name": self._header.name}
        handle = base64.b64encode(self._device.handle).decode()
        return {"name": self._header.name, "cuda_handle": handle, "device": self._device.device}

    def read_samples(self, record: dict[str, Any]) -> NDArray[Any]:
        """Return a copy of the samples to which an event refers, and release their slots.

        Args:
            record: The event's `ring`: `slot` (index of the first slot, counted from the start of the utterance),
                `slots` (number of slots), `samples` (number of samples) and `dtype`.
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
        """True if the server has not opened the ring's GPU memory."""
        return self._words[_OPEN] == 0

    def withdraw(self) -> None:
        """Invalidate the ring, so that servers no longer open it."""
        self._words[0] = 0

    async def until_free(self) -> None:
        """Withdraw the ring and wait for up to PATIENCE_S seconds until the server has released it."""
        self.withdraw()
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while not self.is_free:
                    await asyncio.sleep(POLL_S)

    def _read(self, offset: int, byte_size: int) -> NDArray[Any]:
        if self._device is not None:
            return self._device.read(offset, byte_size)
        return self._header.read(HEADER + offset, byte_size)

    def close(self) -> None:
        """Free the memory; call `until_free` first."""
        self._words.release()
        self._header.close()
        os.close(self._lock)
        if self._device is not None:
            self._device.close()


class Sharing:
    """Shared memory of a request, which is freed after the utterance.

    Inputs are always in system memory. Triton would open them in GPU memory, and might end if this process did.

    Args:
        memory: Memory of the ring's slots, `system` or `cuda`.
        ring_size: Size of the ring.
        headers: Headers that grant access to the server's shared-memory API.
    """

    def __init__(self, memory: Memory, ring_size: RingSize, headers: dict[str, str]):
        self._memory, self._ring_size, self._headers = memory, ring_size, headers
        self.ring: Ring | None = None
        self._regions: list[SystemRegion] = []
        self._registered: list[SystemRegion] = []

    def region(self, byte_size: int) -> SystemRegion:
        """Create a region of `byte_size` bytes."""
        region = SystemRegion("stretto_in", byte_size)
        self._regions.append(region)
        return region

    def make_ring(self) -> Ring:
        """Create the ring for the samples."""
        self.ring = Ring(self._memory, self._ring_size)
        return self.ring

    async def register(self, server: InferenceServerClient) -> None:
        """Register the regions with the server."""
        for region in self._regions:
            await region.register(server, self._headers)
            self._registered.append(region)

    async def close(self, server: InferenceServerClient) -> None:
        """Unregister and free all memory, even if the server no longer responds."""
        registered, self._registered = self._registered, []
        try:
            for region in registered:
                await region.unregister(server, self._headers)
        finally:
            while self._regions:
                self._regions.pop().close()
            ring, self.ring = self.ring, None
            if ring is not None:
                try:
                    await ring.until_free()
                finally:
                    ring.close()
