"""Check all our calls to NVIDIA's `cuda-bindings` against the installed release, without a GPU.

    python -m scripts.cuda_bindings_calls          # prints the release and the calls, or fails with an error

A binding converts its arguments before it calls the driver, so a wrong number or type of arguments is an error on any
host. Results that need a GPU are made up. On a host with a GPU, the script makes no calls, because the GPU tests cover
them.
"""

import sys
from collections import Counter
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import numpy as np

from stretto_contract.cuda_memory import CudaMemory, device_of

ADDRESS = 1 << 21
NUM_BYTES = 1 << 20
BUS_ID = b"0000:3B:00.0"
EXPECTED = {
    "cudaSetDevice", "cudaMemcpy", "cudaStreamSynchronize", "cudaDeviceGetPCIBusId", "cudaDeviceGetByPCIBusId",
    "cuMemGetAllocationGranularity", "cuMemCreate", "cuMemExportToShareableHandle", "cuMemImportFromShareableHandle",
    "cuMemAddressReserve", "cuMemMap", "cuMemSetAccess", "cuMemsetD8", "cuMemUnmap", "cuMemAddressFree", "cuMemRelease",
}  # fmt: skip


class WithoutGpu:
    """Wrapper around a bindings module that replaces failures with successful results."""

    def __init__(self, bindings: Any, success: Any, made_up: dict[str, tuple[Any, ...]]):
        self._bindings = bindings
        self._success = success
        self._made_up = made_up
        self.calls = Counter[str]()

    def __getattr__(self, name: str) -> Any:
        binding = getattr(self._bindings, name)
        if name not in EXPECTED:
            return binding

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls[name] += 1
            made_up = self._made_up.get(name, ())
            try:
                _, *results = binding(*arguments)
            except RuntimeError:  # no driver; wrong arguments raise other errors
                return self._success, *made_up
            assert len(results) == len(made_up), f"{name} gives {len(results)} results, not {len(made_up)}"
            return self._success, *made_up

        return call


def main() -> int:
    from cuda.bindings import driver, runtime

    status, number = runtime.cudaGetDeviceCount()
    if status == runtime.cudaError_t.cudaSuccess and number:
        print(f"cuda-bindings {version('cuda-bindings')}: no calls are made, because this host has a GPU")
        return 0
    bus_ids: dict[str, tuple[Any, ...]] = {"cudaDeviceGetPCIBusId": (BUS_ID + b"\0",), "cudaDeviceGetByPCIBusId": (0,)}
    handle = driver.CUmemGenericAllocationHandle(1)
    made_up = dict.fromkeys(("cuMemCreate", "cuMemImportFromShareableHandle"), (handle,))
    made_up |= {"cuMemGetAllocationGranularity": (NUM_BYTES,), "cuMemExportToShareableHandle": (5,)}
    made_up |= {"cuMemAddressReserve": (driver.CUdeviceptr(ADDRESS),)}
    there: Any = WithoutGpu(runtime, runtime.cudaError_t.cudaSuccess, bus_ids)
    of_driver: Any = WithoutGpu(driver, driver.CUresult.CUDA_SUCCESS, made_up)
    sys.modules["cuda.bindings"] = SimpleNamespace(runtime=there, driver=of_driver)  # type: ignore[assignment]
    data = np.zeros(16, np.uint8)
    memory = CudaMemory(0, NUM_BYTES)
    assert memory.bus_id() == BUS_ID
    opened = CudaMemory(device_of(memory.bus_id()), NUM_BYTES, memory.export())
    memory.write(0, data.ctypes.data, 16)
    opened.read(0, data.ctypes.data, 16)
    for opened_memory in (memory, opened):
        opened_memory.close()
    calls = there.calls + of_driver.calls
    assert calls.keys() == EXPECTED, f"never called: {EXPECTED - calls.keys()}"
    print(f"cuda-bindings {version('cuda-bindings')}: {', '.join(sorted(calls))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
