"""Memory shared with a server on the same host: regions, and rings for an utterance's samples."""

import os
import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc.aio import InferenceServerClient

from stretto_client.errors import ServerUnavailable
from stretto_contract.cuda_memory import CudaError, CudaMemory, device_of
from stretto_contract.schema import SOCKET_SUFFIX, Memory, RingOptions


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
        self.name = self._memory.name
        self._byte_size = byte_size
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
        """Unregister the region; `headers` are as for `register`."""
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


MAGIC = int.from_bytes(b"STRRING1", "little")
HEADER = 4096  # bytes, one page
PREFIX = "stretto_ring"
MAX_BUS_ID_BYTES = 32  # maximum size of a message; a PCI bus id has 12 or 16 bytes
_SLOTS = 1
_SLOT_BYTES = 2
_RELEASED = 3


@dataclass(frozen=True, slots=True)
class RingSize:
    """Size of an utterance's ring. The default, 64 slots of 16 KiB, holds 10 s of float32 samples at 24 kHz."""

    slots: int = 64
    slot_bytes: int = 1 << 14

    def __post_init__(self) -> None:
        if self.slots < 1 or self.slot_bytes < 1 or self.slot_bytes % 8:
            raise ValueError(f"a ring needs slots of a multiple of 8 bytes, got {self.slots} of {self.slot_bytes}")


class ServerMemory:
    """GPU memory that the server's decoder has allocated for a ring.

    The decoder sends its descriptor to a socket in /dev/shm before it sends the first event. ServerUnavailable is
    raised if the socket cannot be created.
    """

    def __init__(self, name: str, byte_size: int):
        import_module("cuda.bindings.driver")  # so that a missing package is reported here, not at the first event
        self._byte_size = byte_size
        self._memory: CudaMemory | None = None
        self._name = f"{name}{SOCKET_SUFFIX}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            os.fchmod(self._socket.fileno(), 0o600)  # `bind` gives the file this mode
            self._socket.bind(f"/dev/shm/{self._name}")
        except OSError as error:
            self._socket.close()
            raise ServerUnavailable(f"cannot create a socket in /dev/shm: {error.strerror}") from None
        resource_tracker.register(f"/{self._name}", "shared_memory")  # removes the file if this process is killed

    def read(self, offset: int, byte_size: int) -> NDArray[Any]:
        """Return a copy of the `byte_size` bytes at `offset`, as uint8."""
        data = np.empty(byte_size, np.uint8)
        try:
            if self._memory is None:
                self._memory = self._receive()
            self._memory.read(offset, data.ctypes.data, byte_size)
        except CudaError as error:
            raise ServerUnavailable(f"cannot read the server's GPU memory: {error}") from error
        return data

    def _receive(self) -> CudaMemory:
        try:
            bus_id, descriptors, *_ = socket.recv_fds(self._socket, MAX_BUS_ID_BYTES, 1)
        except BlockingIOError:
            raise ServerUnavailable("the server has not sent the descriptor of its GPU memory") from None
        try:
            if len(descriptors) != 1:
                raise ServerUnavailable(
                    f"the server has sent {len(descriptors)} descriptors of its GPU memory, not one"
                )
            return CudaMemory(device_of(bus_id), self._byte_size, descriptors[0])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def close(self) -> None:
        """Unmap the memory and remove the socket."""
        memory = self._memory
        self._memory = None
        try:
            if memory is not None:
                memory.close()
        finally:
            self._socket.close()
            with suppress(FileNotFoundError):
                os.unlink(f"/dev/shm/{self._name}")
            resource_tracker.unregister(f"/{self._name}", "shared_memory")


class Ring:
    """Ring of sample slots in shared memory, as seen by the client.

    Its header, and slots in system memory, belong to the client. Slots in GPU memory belong to the decoder.
    """

    def __init__(self, memory: Memory, size: RingSize):
        self._size = size
        self._released = 0
        payload = size.slots * size.slot_bytes
        self._header = SystemRegion(PREFIX, HEADER + (payload if memory == "system" else 0))
        try:
            self._device = ServerMemory(self._header.name, payload) if memory == "cuda" else None
        except BaseException:
            self._header.close()
            raise
        self._words = self._header.words
        self._words[_SLOTS] = size.slots
        self._words[_SLOT_BYTES] = size.slot_bytes
        self._words[_RELEASED] = 0
        self._words[0] = MAGIC

    def option(self) -> RingOptions:
        """Return the value for `options.output.ring` that lets the server open the ring."""
        return {"name": self._header.name, "memory": "system" if self._device is None else "cuda"}

    def read_samples(self, record: dict[str, Any]) -> NDArray[Any]:
        """Return a copy of the samples to which an event refers, and release their slots.

        Args:
            record: The event's `ring`: `slot` (index of the first slot, counted from the start of the utterance),
                `slots` (number of slots), `samples` (number of samples) and `dtype`.
        """
        if record["slot"] != self._released:
            raise ValueError(f"the event names slot {record['slot']}, but {self._released} is next")
        size = self._size
        dtype = np.dtype(record["dtype"])
        left = record["samples"] * dtype.itemsize
        parts = [np.empty(0, np.uint8)]
        for slot in range(record["slot"], record["slot"] + record["slots"]):
            used = min(left, size.slot_bytes)
            parts.append(self._read(slot % size.slots * size.slot_bytes, used))
            left -= used
        self._released = record["slot"] + record["slots"]
        self._words[_RELEASED] = self._released
        return np.concatenate(parts).view(dtype)

    def _read(self, offset: int, byte_size: int) -> NDArray[Any]:
        if self._device is not None:
            return self._device.read(offset, byte_size)
        return self._header.read(HEADER + offset, byte_size)

    def close(self) -> None:
        """Free the memory. The server keeps its own mapping of a ring until the utterance is over."""
        self._words.release()
        try:
            if self._device is not None:
                self._device.close()
        finally:
            self._header.close()


class Sharing:
    """Shared memory of a request, which is freed after the utterance.

    Inputs are always in system memory. If they were in GPU memory, Triton would open it, and could crash if this
    process ended.
    """

    def __init__(self, memory: Memory, ring_size: RingSize, headers: dict[str, str]):
        self._memory = memory
        self._ring_size = ring_size
        self._headers = headers
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
        registered = self._registered
        self._registered = []
        try:
            for region in registered:
                await region.unregister(server, self._headers)
        finally:
            while self._regions:
                self._regions.pop().close()
            ring = self.ring
            self.ring = None
            if ring is not None:
                ring.close()
