"""Memory regions shared with a server on the same host: system memory or GPU memory."""

import base64
import ctypes
import os
import secrets
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Literal, Protocol

import numpy as np
from tritonclient.grpc.aio import InferenceServerClient

from stretto_client.errors import ServerUnavailable

Memory = Literal["system", "cuda"]


class Region(Protocol):
    """Named shared memory region; `close` frees it."""

    name: str

    def write(self, data: np.ndarray) -> None:
        """Write `data` to the beginning."""
        ...

    def read(self, offset: int, byte_size: int) -> np.ndarray:
        """Return a copy of `byte_size` bytes from `offset` on, as uint8."""
        ...

    async def register(self, server: InferenceServerClient, headers: dict[str, str]) -> None:
        """Register the region with the server as an input; `headers` grant access to that API."""
        ...

    async def unregister(self, server: InferenceServerClient, headers: dict[str, str]) -> None:
        """Undo `register`."""
        ...

    def close(self) -> None:
        """Free the memory."""
        ...


class SystemRegion:
    """System memory, opened by name in another process; raises ServerUnavailable if memory is short."""

    def __init__(self, prefix: str, byte_size: int):
        self._memory = SharedMemory(f"{prefix}_{secrets.token_hex(8)}", create=True, size=byte_size)
        try:
            reserve(self._memory.name, byte_size)
        except OSError as error:
            self.close()
            raise ServerUnavailable(f"no room for {byte_size} bytes of shared memory: {error.strerror}") from None
        self.name, self._byte_size = self._memory.name, byte_size
        assert self._memory.buf is not None
        self._buffer: memoryview = self._memory.buf

    @property
    def words(self) -> memoryview:
        """The region as int64 words; each store is atomic. Release it before `close`."""
        return self._buffer.cast("q")

    def write(self, data: np.ndarray) -> None:
        """See Region."""
        self._buffer[: data.nbytes] = np.ascontiguousarray(data).view(np.uint8).data

    def read(self, offset: int, byte_size: int) -> np.ndarray:
        """See Region."""
        return np.frombuffer(bytes(self._buffer[offset : offset + byte_size]), np.uint8)

    async def register(self, server: InferenceServerClient, headers: dict[str, str]) -> None:
        """See Region."""
        await server.register_system_shared_memory(self.name, f"/{self.name}", self._byte_size, headers=headers)

    async def unregister(self, server: InferenceServerClient, headers: dict[str, str]) -> None:
        """See Region."""
        await server.unregister_system_shared_memory(self.name, headers)

    def close(self) -> None:
        """See Region."""
        self._memory.close()
        self._memory.unlink()


def reserve(name: str, byte_size: int) -> None:
    """Allocate the memory now; raise OSError if there is not enough.

    Otherwise a write to a page that cannot be allocated would end the writing process (SIGBUS).
    """
    descriptor = os.open(f"/dev/shm/{name}", os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, byte_size)
    finally:
        os.close(descriptor)


DEFAULT_STREAM = 0
BLOCK = 1 << 21  # CUDA allocates smaller sizes from a shared block of this size, and a handle opens the whole block
HANDLE_BYTES = 64  # of `cudaIpcMemHandle_t`, whose only field cuda-bindings does not expose since 13.4.1


class CudaRegion:
    """GPU memory, opened by its IPC handle in another process. It needs NVIDIA's `cuda-bindings`."""

    def __init__(self, prefix: str, byte_size: int, device: int = 0):
        from cuda.bindings import runtime

        self._runtime: Any = runtime
        self.name, self.device, self._byte_size = f"{prefix}_{secrets.token_hex(8)}", device, byte_size
        self._call("cudaSetDevice", device)
        (self._address,) = self._call("cudaMalloc", -(-byte_size // BLOCK) * BLOCK)
        (handle,) = self._call("cudaIpcGetMemHandle", self._address)
        self.handle = ctypes.string_at(int(handle.getPtr()), HANDLE_BYTES)

    def write(self, data: np.ndarray) -> None:
        """See Region."""
        data = np.ascontiguousarray(data)
        self._copy(self._address, data.ctypes.data, data.nbytes)

    def read(self, offset: int, byte_size: int) -> np.ndarray:
        """See Region."""
        data = np.empty(byte_size, np.uint8)
        self._copy(data.ctypes.data, self._address + offset, byte_size)
        return data

    async def register(self, server: InferenceServerClient, headers: dict[str, str]) -> None:
        """See Region."""
        handle = base64.b64encode(self.handle)
        await server.register_cuda_shared_memory(self.name, handle, self.device, self._byte_size, headers=headers)

    async def unregister(self, server: InferenceServerClient, headers: dict[str, str]) -> None:
        """See Region."""
        await server.unregister_cuda_shared_memory(self.name, headers)

    def close(self) -> None:
        """See Region."""
        self._call("cudaFree", self._address)

    def _copy(self, target: int, source: int, byte_size: int) -> None:
        self._call("cudaSetDevice", self.device)
        self._call("cudaMemcpy", target, source, byte_size, self._runtime.cudaMemcpyKind.cudaMemcpyDefault)
        # A copy to the device from unpinned memory may still run when the call returns.
        self._call("cudaStreamSynchronize", DEFAULT_STREAM)

    def _call(self, function: str, *arguments: Any) -> tuple[Any, ...]:
        status, *results = getattr(self._runtime, function)(*arguments)
        if status != self._runtime.cudaError_t.cudaSuccess:
            raise MemoryError(f"{function}: {status!r}")
        return tuple(results)


def new_region(memory: Memory, prefix: str, byte_size: int) -> Region:
    """Return a region of `byte_size` bytes; raise ValueError for an unknown kind of memory."""
    if memory not in ("system", "cuda"):
        raise ValueError(f"shared_memory: expected 'system' or 'cuda', got {memory!r}")
    return SystemRegion(prefix, byte_size) if memory == "system" else CudaRegion(prefix, byte_size)
