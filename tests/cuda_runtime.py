"""Fake `cuda.bindings` in host memory, with the memory, descriptors, copies and failures that we use.

A descriptor is one of a memory file, so processes can share it, and the kernel frees it as CUDA does: once no process
maps it and no descriptor is open.
"""

import ctypes
import os
import sys
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest

GRANULARITY = 1 << 21
PROT_NONE, MAP_FIXED = 0, 0x10  # from <sys/mman.h>; Python 3.11 has no names for them
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
BUS_IDS = {0: b"0000:3B:00.0", 1: b"0000:AF:00.0"}


class Status(SimpleNamespace):
    """Status of a call, with a name as in `cuda.bindings`."""

    name: str


SUCCESS, INVALID = Status(name="CUDA_SUCCESS"), Status(name="CUDA_ERROR_INVALID_VALUE")
OUT_OF_MEMORY, NOT_SUPPORTED = Status(name="CUDA_ERROR_OUT_OF_MEMORY"), Status(name="CUDA_ERROR_NOT_SUPPORTED")


class FakeRuntime(ModuleType):
    """Fake `cuda.bindings.runtime`.

    Attributes:
        mappings: Size of mapped memory by its address.
        device: Number of the current GPU.
    """

    cudaError_t = SimpleNamespace(cudaSuccess=SUCCESS)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDefault=4)

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.mappings = dict[int, int]()
        self.on_their_way: list[tuple[int, bytes]] = []
        self.device = -1

    def cudaSetDevice(self, device: int) -> tuple[Status]:
        self.device = device
        return (SUCCESS if device in BUS_IDS else INVALID,)

    def cudaDeviceGetPCIBusId(self, length: int, device: int) -> tuple[Status, bytes]:
        return SUCCESS, (BUS_IDS[device] + b"\0")[:length]

    def cudaDeviceGetByPCIBusId(self, bus_id: bytes) -> tuple[Status, int]:
        return next(((SUCCESS, device) for device, each in BUS_IDS.items() if each == bus_id), (INVALID, 0))

    def cudaMemcpy(self, target: int, source: int, size: int, kind: int) -> tuple[Status]:
        """Copy host memory now, and deliver it to the device only at the next synchronization."""
        taken = ctypes.string_at(source, size)
        if any(address <= target < address + length for address, length in self.mappings.items()):
            self.on_their_way.append((target, taken))
        else:
            ctypes.memmove(target, taken, size)
        return (SUCCESS,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Status]:
        for target, taken in self.on_their_way:
            ctypes.memmove(target, taken, len(taken))
        self.on_their_way.clear()
        return (SUCCESS,)


class FakeDriver(ModuleType):
    """Fake `cuda.bindings.driver`. A handle is a descriptor of a memory file.

    Attributes:
        handles: Handles that have not been released.
        failing: Status by the name of a call that fails.
    """

    CUresult = SimpleNamespace(CUDA_SUCCESS=SUCCESS)
    CUmemAllocationHandleType = SimpleNamespace(CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR=1)
    CUmemAllocationType = SimpleNamespace(CU_MEM_ALLOCATION_TYPE_PINNED=1)
    CUmemLocationType = SimpleNamespace(CU_MEM_LOCATION_TYPE_DEVICE=1)
    CUmemAllocationGranularity_flags = SimpleNamespace(CU_MEM_ALLOC_GRANULARITY_MINIMUM=0)
    CUmemAccess_flags = SimpleNamespace(CU_MEM_ACCESS_FLAGS_PROT_READWRITE=3)

    def __init__(self, runtime: FakeRuntime) -> None:
        super().__init__("cuda.bindings.driver")
        self._runtime = runtime
        self.handles = set[int]()
        self.reserved = dict[int, int]()
        self.failing = dict[str, Status]()

    def CUmemAllocationProp(self) -> SimpleNamespace:
        return SimpleNamespace(location=SimpleNamespace())

    def CUmemAccessDesc(self) -> SimpleNamespace:
        return SimpleNamespace()

    def cuMemGetAllocationGranularity(self, properties: Any, kind: int) -> tuple[Status, int]:
        return SUCCESS, GRANULARITY

    def cuMemCreate(self, size: int, properties: Any, flags: int) -> tuple[Status, int]:
        assert size % GRANULARITY == 0
        if "cuMemCreate" in self.failing:
            return self.failing["cuMemCreate"], 0
        handle = os.memfd_create("gpu")
        os.pwrite(handle, b"\xaa" * size, 0)  # other data of the process
        self.handles.add(handle)
        return SUCCESS, handle

    def cuMemExportToShareableHandle(self, handle: int, kind: int, flags: int) -> tuple[Status, int]:
        return SUCCESS, os.dup(handle)

    def cuMemImportFromShareableHandle(self, descriptor: int, kind: int) -> tuple[Status, int]:
        if not os.readlink(f"/proc/self/fd/{descriptor}").startswith("/memfd:gpu"):
            return INVALID, 0
        handle = os.dup(descriptor)
        self.handles.add(handle)
        return SUCCESS, handle

    def cuMemRelease(self, handle: int) -> tuple[Status]:
        self.handles.remove(handle)
        os.close(handle)
        return (SUCCESS,)

    def cuMemAddressReserve(self, size: int, alignment: int, address: int, flags: int) -> tuple[Status, int]:
        reserved = libc.mmap(None, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        self.reserved[reserved] = size
        return SUCCESS, reserved

    def cuMemMap(self, address: int, size: int, offset: int, handle: int, flags: int) -> tuple[Status]:
        if size > min(self.reserved[address], os.fstat(handle).st_size):
            return (INVALID,)
        libc.mmap(address, size, PROT_NONE, MAP_SHARED | MAP_FIXED, handle, offset)
        self._runtime.mappings[address] = size
        return (SUCCESS,)

    def cuMemSetAccess(self, address: int, size: int, access: list[Any], count: int) -> tuple[Status]:
        assert count == len(access)
        assert access[0].location.id == self._runtime.device
        if "cuMemSetAccess" in self.failing:
            return (self.failing["cuMemSetAccess"],)
        libc.mprotect(address, size, PROT_READ | PROT_WRITE)
        return (SUCCESS,)

    def cuMemsetD8(self, address: int, value: int, size: int) -> tuple[Status]:
        assert self._runtime.mappings[address] == size
        ctypes.memset(address, value, size)
        return (SUCCESS,)

    def cuMemUnmap(self, address: int, size: int) -> tuple[Status]:
        assert self._runtime.mappings.pop(address) == size
        libc.mmap(address, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
        return (SUCCESS,)

    def cuMemAddressFree(self, address: int, size: int) -> tuple[Status]:
        assert address not in self._runtime.mappings
        assert self.reserved.pop(address) == size
        libc.munmap(address, size)
        return (SUCCESS,)


class FakeCuda(NamedTuple):
    """Both fake modules."""

    runtime: FakeRuntime
    driver: FakeDriver

    @property
    def is_unused(self) -> bool:
        """True if this process has no memory, mapping or handle."""
        return not (self.runtime.mappings or self.driver.handles or self.driver.reserved)


def install() -> FakeCuda:
    """Install this fake as `cuda.bindings` in this process, in which nothing else must have imported it."""
    runtime, bindings = FakeRuntime(), ModuleType("cuda.bindings")
    driver = FakeDriver(runtime)
    bindings.runtime, bindings.driver = runtime, driver
    for module in (ModuleType("cuda"), bindings, runtime, driver):
        sys.modules[module.__name__] = module
    return FakeCuda(runtime, driver)


def install_for(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Install this fake as `cuda.bindings` for one test."""
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime", "cuda.bindings.driver"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))  # restored after the test
    return install()
