"""GPU memory that two processes share through a file descriptor (CUDA's virtual memory management).

It requires NVIDIA's `cuda-bindings`, which are imported when memory is allocated or opened.
"""

from typing import Any

DEFAULT_STREAM = 0
BUS_ID_BYTES = 13  # "0000:00:00.0" and a zero, as CUDA writes a PCI bus id


class CudaError(RuntimeError):
    """A call to CUDA has failed.

    Attributes:
        is_out_of_memory: True if the GPU has too little free memory.
    """

    def __init__(self, function: str, status: Any):
        super().__init__(f"{function}: {getattr(status, 'name', status)}")
        self.is_out_of_memory = getattr(status, "name", "") == "CUDA_ERROR_OUT_OF_MEMORY"


class CudaMemory:
    """Memory of a GPU, mapped into this process.

    CUDA frees it once no process maps it and no descriptor of it is open. A process may therefore close it, or end,
    while the other one accesses it.

    Args:
        num_bytes: Size in bytes, which is rounded up to the GPU's granularity (2 MiB).
        descriptor: Descriptor of memory that another process has allocated; None to allocate memory.

    Raises:
        CudaError: There is too little memory, or the GPU or the descriptor does not permit sharing.
        ImportError: `cuda-bindings` is not installed.
    """

    def __init__(self, device: int, num_bytes: int, descriptor: int | None = None):
        from cuda.bindings import driver, runtime

        self._driver: Any = driver
        self._runtime: Any = runtime
        self._device = device
        self._set_device()
        self._handle_type = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        properties = driver.CUmemAllocationProp()
        properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.requestedHandleTypes = self._handle_type
        properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        properties.location.id = device
        smallest = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        (granularity,) = self._call("cuMemGetAllocationGranularity", properties, smallest)
        self._num_bytes = -(-num_bytes // granularity) * granularity
        if descriptor is None:
            (self._handle,) = self._call("cuMemCreate", self._num_bytes, properties, 0)
        else:
            (self._handle,) = self._call("cuMemImportFromShareableHandle", descriptor, self._handle_type)
        try:
            self._address = self._map(properties.location, is_new=descriptor is None)
        except BaseException:
            self._call("cuMemRelease", self._handle)
            raise

    def _map(self, location: Any, is_new: bool) -> Any:
        """Map the memory and return its address; clear new memory, which may contain other data of this process."""
        (address,) = self._call("cuMemAddressReserve", self._num_bytes, 0, 0, 0)
        try:
            self._call("cuMemMap", address, self._num_bytes, 0, self._handle, 0)
            try:
                access = self._driver.CUmemAccessDesc()
                access.location = location
                access.flags = self._driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
                self._call("cuMemSetAccess", address, self._num_bytes, [access], 1)
                if is_new:
                    self._call("cuMemsetD8", address, 0, self._num_bytes)
                    self._call("cudaStreamSynchronize", DEFAULT_STREAM)
            except BaseException:
                self._call("cuMemUnmap", address, self._num_bytes)
                raise
        except BaseException:
            self._call("cuMemAddressFree", address, self._num_bytes)
            raise
        return address

    def export(self) -> int:
        """Return a new descriptor of the memory, which the caller closes."""
        (descriptor,) = self._call("cuMemExportToShareableHandle", self._handle, self._handle_type, 0)
        return int(descriptor)

    def bus_id(self) -> bytes:
        """Return the PCI bus id of the GPU, which is the same in all processes of a host."""
        text: bytes
        (text,) = self._call("cudaDeviceGetPCIBusId", BUS_ID_BYTES, self._device)
        return text.partition(b"\0")[0]

    def write(self, offset: int, source: int, num_bytes: int) -> None:
        """Copy `num_bytes` bytes to the byte offset `offset`.

        Args:
            source: Address of the data on the host or a GPU. All computation of the data must have ended.
        """
        self._copy(int(self._address) + offset, source, num_bytes)

    def read(self, offset: int, target: int, num_bytes: int) -> None:
        """Copy `num_bytes` bytes at the byte offset `offset` to the host address `target`."""
        self._copy(target, int(self._address) + offset, num_bytes)

    def close(self) -> None:
        """Unmap the memory. Other processes keep their mappings."""
        self._set_device()
        try:
            self._call("cuMemUnmap", self._address, self._num_bytes)
            self._call("cuMemAddressFree", self._address, self._num_bytes)
        finally:
            self._call("cuMemRelease", self._handle)

    def _copy(self, target: int, source: int, num_bytes: int) -> None:
        self._set_device()
        self._call("cudaMemcpy", target, source, num_bytes, self._runtime.cudaMemcpyKind.cudaMemcpyDefault)
        # For copies from memory that is not pinned, and within a GPU, cudaMemcpy returns before the data have arrived
        # (CUDA runtime API, "API synchronization behavior").
        self._call("cudaStreamSynchronize", DEFAULT_STREAM)

    def _set_device(self) -> None:
        # Also makes the GPU's context current in this thread, which the driver's functions below use.
        self._call("cudaSetDevice", self._device)

    def _call(self, function: str, *arguments: Any) -> tuple[Any, ...]:
        is_runtime = function.startswith("cuda")
        module = self._runtime if is_runtime else self._driver
        status, *results = getattr(module, function)(*arguments)
        if status != (module.cudaError_t.cudaSuccess if is_runtime else module.CUresult.CUDA_SUCCESS):
            raise CudaError(function, status)
        return tuple(results)


def device_of(bus_id: bytes) -> int:
    """Return the number that this process uses for the GPU with a PCI bus id; raise CudaError if it sees none."""
    from cuda.bindings import runtime

    status, device = runtime.cudaDeviceGetByPCIBusId(bus_id)
    if status != runtime.cudaError_t.cudaSuccess:
        raise CudaError("cudaDeviceGetByPCIBusId", status)
    return int(device)
