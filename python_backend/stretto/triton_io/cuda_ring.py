"""GPU memory that the decoder allocates for clients' rings and shares with them."""

import errno
import os
import socket
import stat
import struct
import threading
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import numpy as np

from stretto.errors import InvalidRequest, Overloaded
from stretto_contract.cuda_memory import CudaError, CudaMemory
from stretto_contract.limits import FairLimit
from stretto_contract.schema import SOCKET_SUFFIX

BLOCK = 1 << 21  # bytes; memory is counted in blocks of this size, which CUDA allocates
MAX_TOTAL_BYTES = 1 << 28
FULL = {errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS}  # this process has too many descriptors


class CudaRings:
    """Allocator of the GPU memory of all rings, up to MAX_TOTAL_BYTES, which client hosts share fairly.

    Args:
        device: Device of the decoder (`cpu`, `cuda:0`, …), which has the memory.
    """

    def __init__(self, device: str) -> None:
        device_type, _, index = device.partition(":")
        self._device = int(index or 0) if device_type == "cuda" else None
        self._bytes = FairLimit(MAX_TOTAL_BYTES)
        self._lock = threading.Lock()
        if self._device is not None:
            with suppress(ImportError):  # refused in `allocate`
                import_module("cuda.bindings.driver")  # takes long, so not with the first ring

    @property
    def num_bytes(self) -> int:
        return self._bytes.held

    def allocate(self, path: Path, num_bytes: int, host: str) -> "CudaPayload":
        """Allocate the slots of a ring, and send their descriptor to its client.

        Args:
            path: Path of the ring's header; the client's socket is in the same folder.

        Raises:
            InvalidRequest: The decoder has no GPU memory that can be shared, or the client has no socket.
            Overloaded: The memory for rings, or the host's fair share of it, is in use, or the GPU's memory is full.
        """
        field = "options.output.ring.memory"
        if self._device is None:
            raise InvalidRequest(field, "system, because the decoder of this server has no GPU", "cuda")
        size = -(-num_bytes // BLOCK) * BLOCK
        with self._lock:
            if not self._bytes.has_free(host, size):
                num_of_host = self._bytes.held_by(host)
                held = f"{self._bytes.held} bytes of rings, {num_of_host} of them of this host, are in use"
                raise Overloaded(f"GPU memory: {held} (limit {MAX_TOTAL_BYTES}); try again")
            self._bytes.acquire(host, size)
        try:
            memory = CudaMemory(self._device, size)
            try:
                send_descriptor(memory, path.with_name(f"{path.name}{SOCKET_SUFFIX}"))
            except BaseException:
                memory.close()
                raise
            return CudaPayload(memory, self, host, size)
        except BaseException as error:
            self.release(host, size)
            if isinstance(error, CudaError) and error.is_out_of_memory:
                raise Overloaded(f"GPU memory: too little is free for a ring of {size} bytes; try again") from error
            if isinstance(error, CudaError | ImportError):
                raise InvalidRequest(
                    field, f"system, because this GPU's memory cannot be shared ({error})", "cuda"
                ) from error
            raise

    def release(self, host: str, num_bytes: int) -> None:
        with self._lock:
            self._bytes.release(host, num_bytes)


class CudaPayload:
    """Slots of a ring in GPU memory.

    The client maps the same memory. If the client ends, CUDA removes that mapping, and this one remains valid. After
    `close`, the memory exists until the client closes it, too, so the client can still read the last samples.
    """

    is_on_device = True

    def __init__(self, memory: CudaMemory, rings: CudaRings, host: str, num_bytes: int):
        self._memory = memory
        self._rings = rings
        self._host = host
        self._num_bytes = num_bytes

    def write(self, offset: int, data: np.ndarray, address: int | None) -> None:
        """Copy `data`, uint8 [n], to byte offset `offset`, from GPU address `address` if given."""
        self._memory.write(offset, data.ctypes.data if address is None else address, len(data))

    def close(self) -> None:
        try:
            self._memory.close()
        finally:
            self._rings.release(self._host, self._num_bytes)


def send_descriptor(memory: CudaMemory, path: Path) -> None:
    """Send a descriptor of GPU memory, with the PCI bus id of the GPU, to a client's socket (AF_UNIX, SOCK_DGRAM).

    This never blocks. The kernel closes a descriptor that has not been received when the client ends.

    Raises:
        InvalidRequest: There is no such socket, it belongs to another user, or its process has ended.
        Overloaded: This process has too many open descriptors.
    """
    field = "options.output.ring.name"
    expected = "a ring with a datagram socket of the server's user"
    descriptor: int | None = None
    try:
        socket_file = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            status = os.fstat(socket_file)
            if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
                raise InvalidRequest(field, expected, f"{path.name}: no socket, or one of another user")
            descriptor = memory.export()
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))]
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                # By descriptor, because the file may have been replaced since it was checked. `socket.send_fds` ignores
                # its arguments `flags` and `address`.
                sender.sendmsg([memory.bus_id()], rights, socket.MSG_DONTWAIT, f"/proc/self/fd/{socket_file}")
        finally:
            os.close(socket_file)
    except OSError as error:
        if error.errno in FULL:
            raise Overloaded(f"GPU memory: {error.strerror}; try again") from error
        raise InvalidRequest(field, expected, f"{path.name}: {error.strerror}") from error
    finally:
        if descriptor is not None:
            os.close(descriptor)
