"""Memory of a GPU that another process has allocated, opened by its CUDA IPC handle."""

import ctypes
from typing import Any

import numpy as np

from stretto.errors import InvalidRequest
from stretto.records.ring_address import HANDLE_BYTES

DEFAULT_STREAM = 0


class CudaMemory:
    """Opened once; writes are done when `write` returns, so that the other process may be told."""

    def __init__(self, runtime: Any, handle: bytes, device: int):
        self._runtime, self._device = runtime, device
        self._call("cudaSetDevice", device)
        opened = runtime.cudaIpcMemHandle_t()
        # Its only field is out of reach in cuda-bindings since 13.4.1.
        ctypes.memmove(int(opened.getPtr()), handle, HANDLE_BYTES)
        (self._address,) = self._call("cudaIpcOpenMemHandle", opened, runtime.cudaIpcMemLazyEnablePeerAccess)

    def write(self, offset: int, data: np.ndarray) -> None:
        """Copy uint8 `data`, on the host, to byte `offset`."""
        kind, source = self._runtime.cudaMemcpyKind.cudaMemcpyDefault, np.ascontiguousarray(data)
        self._call("cudaSetDevice", self._device)
        self._call("cudaMemcpy", self._address + offset, source.ctypes.data, len(source), kind)
        # From memory that is not pinned, cudaMemcpy returns before the data have arrived (CUDA runtime API, "API
        # synchronization behavior").
        self._call("cudaStreamSynchronize", DEFAULT_STREAM)

    def close(self) -> None:
        """Let go of the memory."""
        self._call("cudaIpcCloseMemHandle", self._address)

    def _call(self, function: str, *arguments: Any) -> tuple[Any, ...]:
        status, *results = getattr(self._runtime, function)(*arguments)
        if status != self._runtime.cudaError_t.cudaSuccess:
            raise RuntimeError(f"{function}: {status!r}")
        return tuple(results)


def open_cuda_memory(handle: bytes, device: int) -> CudaMemory:
    """The memory behind a CUDA IPC handle; InvalidRequest on a server without CUDA, or for a handle that it rejects."""
    field = "options.output.ring.cuda_handle"
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise InvalidRequest(field, "a ring in system memory: this server has no CUDA", "a CUDA handle") from error
    try:
        return CudaMemory(runtime, handle, device)
    except RuntimeError as error:
        raise InvalidRequest(field, f"memory of GPU {device} that another process shares", str(error)) from error
