"""Fake `cuda.bindings.runtime` in host memory, with the handles, copies and failures that we use."""

import ctypes
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class Handle:
    """`cudaIpcMemHandle_t` as in cuda-bindings since 13.4.1: 64 bytes at an address."""

    def __init__(self, data: bytes = bytes(64)) -> None:
        self._bytes = ctypes.create_string_buffer(data, 64)

    def getPtr(self) -> int:
        return ctypes.addressof(self._bytes)


class OldHandle(Handle):
    """Handle as in older releases, with the bytes in a field."""

    @property
    def reserved(self) -> bytes:
        return self._bytes.raw

    @reserved.setter
    def reserved(self, data: bytes) -> None:
        self._bytes.raw = data


class FakeRuntime(ModuleType):
    """Fake CUDA runtime. Addresses belong to real buffers, and a handle is the number of a buffer."""

    cudaError_t = SimpleNamespace(cudaSuccess=0, cudaErrorInvalidValue=1)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDefault=4)
    cudaIpcMemLazyEnablePeerAccess = 1

    def __init__(self, handle: type[Handle] = Handle) -> None:
        super().__init__("cuda.bindings.runtime")
        self.cudaIpcMemHandle_t = handle
        self.buffers: dict[int, Any] = {}
        self.opened: list[int] = []
        self.on_their_way: list[tuple[int, bytes]] = []
        self.device, self.num_copies = -1, 0

    def cudaSetDevice(self, device: int) -> tuple[int]:
        self.device = device
        return (0 if device < 2 else 1,)

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        buffer = ctypes.create_string_buffer(size)
        address = ctypes.addressof(buffer)
        self.buffers[address] = buffer
        return 0, address

    def cudaFree(self, address: int) -> tuple[int]:
        assert address not in self.opened, "undefined while another process has the memory open"
        return (0 if self.buffers.pop(address, None) else 1,)

    def cudaIpcGetMemHandle(self, address: int) -> tuple[int, Handle]:
        return 0, self.cudaIpcMemHandle_t(address.to_bytes(64, "little"))

    def cudaIpcOpenMemHandle(self, handle: Handle, flags: int) -> tuple[int, int]:
        address = int.from_bytes(ctypes.string_at(handle.getPtr(), 64), "little")
        if address not in self.buffers:
            return 1, 0
        self.opened.append(address)
        return 0, address

    def cudaIpcCloseMemHandle(self, address: int) -> tuple[int]:
        self.opened.remove(address)
        return (0,)

    def cudaMemcpy(self, target: int, source: int, size: int, kind: int) -> tuple[int]:
        """Copy host memory now, and deliver it to the device only at the next synchronization."""
        self.num_copies += 1
        taken = ctypes.string_at(source, size)
        if any(address <= target < address + len(buffer) for address, buffer in self.buffers.items()):
            self.on_their_way.append((target, taken))
        else:
            ctypes.memmove(target, taken, size)
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        for target, taken in self.on_their_way:
            ctypes.memmove(target, taken, len(taken))
        self.on_their_way.clear()
        return (0,)


class FakeDriver(ModuleType):
    """Fake `cuda.bindings.driver`, which reports the object at an address."""

    CUresult = SimpleNamespace(CUDA_SUCCESS=0, CUDA_ERROR_NOT_FOUND=500)

    def __init__(self, runtime: FakeRuntime) -> None:
        super().__init__("cuda.bindings.driver")
        self._runtime = runtime

    def cuMemGetAddressRange(self, address: int) -> tuple[int, int, int]:
        for base, buffer in self._runtime.buffers.items():
            if base <= address < base + len(buffer):
                return 0, base, len(buffer)
        return 500, 0, 0


def install(monkeypatch: pytest.MonkeyPatch, handle: type[Handle] = Handle) -> FakeRuntime:
    """Install this fake as `cuda.bindings`."""
    runtime, bindings = FakeRuntime(handle), ModuleType("cuda.bindings")
    driver = FakeDriver(runtime)
    bindings.runtime, bindings.driver = runtime, driver
    for module in (ModuleType("cuda"), bindings, runtime, driver):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return runtime
