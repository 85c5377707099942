"""Check all our calls to NVIDIA's `cuda-bindings` against the installed release, without a GPU.

    python -m scripts.cuda_bindings_calls          # prints the release and the calls, or fails with an error

A binding converts its arguments before it calls the driver, so a wrong number or type of arguments is an error on any
host. Results that need a GPU are made up, including the bytes of a handle, which must be passed on unchanged. On a host
with a GPU, the script makes no calls, because the GPU tests cover them.
"""

import ctypes
import sys
from collections import Counter
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import numpy as np

from stretto.triton_io.cuda_memory import CudaMemory
from stretto_client import shared_memory

HANDLE = bytes(range(64))
ADDRESS, NUM_BYTES = 1 << 21, 1 << 20
EXPECTED = {
    "cudaSetDevice", "cudaMalloc", "cudaIpcGetMemHandle", "cudaMemcpy", "cudaStreamSynchronize", "cudaFree",
    "cudaIpcOpenMemHandle", "cudaIpcCloseMemHandle", "cuMemGetAddressRange",
}  # fmt: skip


class WithoutGpu:
    """Wrapper around a bindings module that replaces failures with successful results."""

    def __init__(self, bindings: Any, success: Any, made_up: dict[str, tuple[Any, ...]]):
        self._bindings, self._success, self._made_up = bindings, success, made_up
        self.calls = Counter[str]()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._bindings, name)
        if name not in EXPECTED:
            return found

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls[name] += 1
            made_up = self._made_up.get(name, ())
            try:
                _, *results = found(*arguments)
            except RuntimeError:  # no driver; wrong arguments raise other errors
                return self._success, *made_up
            assert len(results) == len(made_up), f"{name} gives {len(results)} results, not {len(made_up)}"
            return self._success, *made_up

        return call


def handle_of(runtime: Any) -> Any:
    """Return an IPC handle with the bytes `HANDLE`, as if a GPU driver had filled it."""
    handle = runtime.cudaIpcMemHandle_t()
    ctypes.memmove(int(handle.getPtr()), HANDLE, len(HANDLE))
    return handle


def main() -> int:
    """Run the check and return the exit status."""
    from cuda.bindings import driver, runtime

    status, number = runtime.cudaGetDeviceCount()
    if status == runtime.cudaError_t.cudaSuccess and number:
        print(f"cuda-bindings {version('cuda-bindings')}: no calls are made, because this host has a GPU")
        return 0
    made_up = dict.fromkeys(("cudaMalloc", "cudaIpcOpenMemHandle"), (ADDRESS,))
    made_up |= {"cudaIpcGetMemHandle": (handle_of(runtime),)}
    there: Any = WithoutGpu(runtime, runtime.cudaError_t.cudaSuccess, made_up)
    of_driver: Any = WithoutGpu(driver, driver.CUresult.CUDA_SUCCESS, {"cuMemGetAddressRange": (ADDRESS, NUM_BYTES)})
    sys.modules["cuda.bindings"] = SimpleNamespace(runtime=there, driver=of_driver)  # type: ignore[assignment]
    region = shared_memory.CudaRegion(NUM_BYTES)
    assert region.handle == HANDLE, "a handle's bytes are not where they are read"
    region.read(0, 16)
    memory = CudaMemory(there, of_driver, region.handle, 0)
    assert memory.size() == NUM_BYTES
    memory.write(0, np.zeros(16, np.uint8))
    memory.close()
    region.close()
    calls = there.calls + of_driver.calls
    assert calls.keys() == EXPECTED, f"never called: {EXPECTED - calls.keys()}"
    print(f"cuda-bindings {version('cuda-bindings')}: {', '.join(sorted(calls))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
