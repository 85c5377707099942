"""Client GPU memory, opened through its CUDA IPC handle.

This module imports nothing from Triton, so that it also works outside Triton.
"""

import ctypes
from typing import Any

import numpy as np

from stretto.errors import InvalidRequest
from stretto_client.schema import HANDLE_BYTES

DEFAULT_STREAM = 0


class CudaMemory:
    """CUDA IPC memory with synchronous writes.

    Args:
        runtime: Module `runtime` of NVIDIA's `cuda.bindings`.
        driver: Module `driver` of `cuda.bindings`.
        handle: IPC handle.
        device: Number of the GPU.
    """

    def __init__(self, runtime: Any, driver: Any, handle: bytes, device: int):
        self._runtime, self._driver, self._device = runtime, driver, device
        self._call("cudaSetDevice", device)
        opened = runtime.cudaIpcMemHandle_t()
        # The handle's only field has been inaccessible since cuda-bindings 13.4.1.
        ctypes.memmove(int(opened.getPtr()), handle, HANDLE_BYTES)
        (self._address,) = self._call("cudaIpcOpenMemHandle", opened, runtime.cudaIpcMemLazyEnablePeerAccess)

    def write(self, offset: int, data: np.ndarray) -> None:
        """Copy `data`, uint8 [n] in host memory, to the byte offset `offset`."""
        source = np.ascontiguousarray(data)
        self.write_from(offset, source.ctypes.data, len(source))

    def write_from(self, offset: int, address: int, num_bytes: int) -> None:
        """Copy data that has been fully computed.

        Args:
            offset: Destination offset in bytes.
            address: Source address, on the host or a GPU.
            num_bytes: Size in bytes.
        """
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDefault
        self._call("cudaSetDevice", self._device)
        self._call("cudaMemcpy", self._address + offset, address, num_bytes, kind)
        # For copies from memory that is not pinned, and within a GPU, cudaMemcpy returns before the data have arrived
        # (CUDA runtime API, "API synchronization behavior").
        self._call("cudaStreamSynchronize", DEFAULT_STREAM)

    def size(self) -> int:
        """Return the size in bytes."""
        status, base, num_bytes = self._driver.cuMemGetAddressRange(self._address)
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"cuMemGetAddressRange: {status!r}")
        return int(base) + int(num_bytes) - int(self._address)

    def close(self) -> None:
        """Unmap the memory of the other process."""
        self._call("cudaIpcCloseMemHandle", self._address)

    def _call(self, function: str, *arguments: Any) -> tuple[Any, ...]:
        status, *results = getattr(self._runtime, function)(*arguments)
        if status != self._runtime.cudaError_t.cudaSuccess:
            raise RuntimeError(f"{function}: {status!r}")
        return tuple(results)


def open_cuda_memory(handle: bytes, device: int, num_bytes: int) -> CudaMemory:
    """Open GPU memory through its CUDA IPC handle.

    Args:
        handle: IPC handle.
        device: Number of the GPU.
        num_bytes: Minimum size in bytes.

    Raises:
        InvalidRequest: The server has no CUDA, the handle is invalid, or the memory is too small.
    """
    field = "options.output.ring.cuda_handle"
    try:
        from cuda.bindings import driver, runtime
    except ImportError as error:
        raise InvalidRequest(
            field, "a ring in system memory, because this server has no CUDA", "a CUDA handle"
        ) from error
    try:
        memory = CudaMemory(runtime, driver, handle, device)
        found = memory.size()
    except RuntimeError as error:
        raise InvalidRequest(
            field, f"a handle of another process's memory on GPU {device}", f"a handle that cannot be opened ({error})"
        ) from error
    if found < num_bytes:
        memory.close()
        raise InvalidRequest(field, f"at least {num_bytes} bytes of memory on GPU {device}", f"{found} bytes")
    return memory
