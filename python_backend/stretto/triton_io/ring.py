"""Server side of an output ring: samples in memory created by a client on the same host, instead of gRPC.

    header, 8 int64 words        MAGIC | slots | bytes per slot | released | open | …
    slots, from byte HEADER on   after the header in system memory, or separately in GPU memory

The client writes `released`. The server writes `open`: 1 while it has GPU memory open, which the client must not free
(CUDA runtime API, `cudaIpcCloseMemHandle`). Slots are numbered from the start: slot n is at position n % slots, and is
free once n < released + slots.
"""

import base64
import os
import stat
import struct
from pathlib import Path
from typing import Protocol

import numpy as np

from stretto.errors import InvalidRequest
from stretto.records.event import RingSlots
from stretto.records.ring_address import FIELD, RingAddress
from stretto.triton_io.cuda_memory import open_cuda_memory

DIRECTORY = Path("/dev/shm")
MAGIC = int.from_bytes(b"STRRING1", "little")
HEADER = 4096
MAX_BYTES = 1 << 28
NUM_WORDS = 8
_SLOTS, _SLOT_BYTES, _RELEASED, _OPEN = 1, 2, 3, 4


class Payload(Protocol):
    """Memory of the slots."""

    is_on_device: bool

    def write(self, offset: int, data: np.ndarray, address: int | None) -> None:
        """Copy uint8 `data` to byte `offset`; `address` is that of the same data on a GPU, if any."""
        ...

    def close(self) -> None:
        """Close the memory."""
        ...


class PcmRing:
    """Writer of one utterance's ring.

    The memory belongs to the client, who may change it at any time. It is therefore accessed as a file; if it were
    mapped, a truncated file would kill this process. Its shape is read once, and all writes stay within that.
    """

    def __init__(self, header: int, shape: tuple[int, int], payload: Payload):
        self._header, self._payload = header, payload
        self._slots, self._slot_bytes = shape
        self._filled = 0

    @classmethod
    def open(cls, address: RingAddress, directory: Path = DIRECTORY) -> "PcmRing":
        """Return the ring at `address`; raise InvalidRequest if it is missing or has another shape."""
        header = _open_header(address, directory)
        try:
            shape = _read_shape(header, address)
            if address.cuda_handle is None:
                return cls(header, shape, SystemPayload(header))
            return cls(header, shape, CudaPayload(header, address, shape))
        except BaseException:
            os.close(header)
            raise

    @property
    def is_on_device(self) -> bool:
        """True if its slots are in GPU memory."""
        return self._payload.is_on_device

    def holds(self, samples: np.ndarray) -> bool:
        """Return True if the whole ring is large enough for `samples` [n]."""
        return samples.nbytes <= self._slots * self._slot_bytes

    def put(self, samples: np.ndarray, address: int | None = None) -> RingSlots | None:
        """Copy `samples` [n] into free slots; return the event's `ring` record, or None if there is no room.

        `address` is that of the same samples on a GPU, if any; a ring on a GPU copies from there.
        """
        data = np.ascontiguousarray(samples).view(np.uint8)
        needed, first = -(-len(data) // self._slot_bytes), self._filled
        if first + needed > _words(self._header)[_RELEASED] + self._slots:
            return None
        place = first % self._slots * self._slot_bytes
        end = self._slots * self._slot_bytes - place  # bytes that fit before the ring wraps
        self._payload.write(place, data[:end], address)
        if len(data) > end:
            self._payload.write(0, data[end:], None if address is None else address + end)
        self._filled = first + needed
        return {"slot": first, "slots": needed, "samples": len(samples), "dtype": str(samples.dtype)}

    def close(self) -> None:
        """Close the memory, which the client owns."""
        try:
            self._payload.close()
        finally:
            os.close(self._header)


class SystemPayload:
    """Slots in system memory after the header."""

    is_on_device = False

    def __init__(self, header: int):
        self._file = header

    def write(self, offset: int, data: np.ndarray, address: int | None) -> None:
        """Copy uint8 `data` to byte `offset`."""
        written = os.pwrite(self._file, data.data, HEADER + offset)
        if written < len(data):
            raise InvalidRequest(FIELD, "room for its slots in shared memory", f"{written} of {len(data)} bytes")

    def close(self) -> None:
        """Do nothing: the file is closed with the header."""


class CudaPayload:
    """Slots in GPU memory, marked as open in the header while they are."""

    is_on_device = True

    def __init__(self, header: int, address: RingAddress, shape: tuple[int, int]):
        assert address.cuda_handle is not None
        self._header = header
        self._say(is_open=True)
        try:
            _read_shape(header, address)  # a client that closes its ring after this waits for us
            handle, num_bytes = base64.b64decode(address.cuda_handle), shape[0] * shape[1]
            self._memory = open_cuda_memory(handle, address.device, num_bytes)
        except BaseException:
            self._say(is_open=False)
            raise

    def write(self, offset: int, data: np.ndarray, address: int | None) -> None:
        """Copy uint8 `data`, or the same data at GPU `address`, to byte `offset`."""
        if address is None:
            self._memory.write(offset, data)
        else:
            self._memory.write_from(offset, address, len(data))

    def close(self) -> None:
        """Close the GPU memory and clear the mark."""
        self._memory.close()
        self._say(is_open=False)

    def _say(self, is_open: bool) -> None:
        os.pwrite(self._header, struct.pack("<q", is_open), 8 * _OPEN)


def _open_header(address: RingAddress, directory: Path) -> int:
    """Return a descriptor of the header's file; raise InvalidRequest if it is missing or a hard link."""
    try:
        header = os.open(directory / address.name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        got = f"{address.name}: {error.strerror}"
        raise InvalidRequest("options.output.ring.name", "shared memory of this host", got) from error
    found = os.fstat(header)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(header)
        raise InvalidRequest("options.output.ring.name", "shared memory of this host", f"{address.name}: none")
    return header


def _words(header: int) -> tuple[int, ...]:
    words = os.pread(header, 8 * NUM_WORDS, 0)
    if len(words) < 8 * NUM_WORDS:
        raise InvalidRequest("options.output.ring.name", f"at least {HEADER} bytes", f"{len(words)} bytes")
    return struct.unpack(f"<{NUM_WORDS}q", words)


def _read_shape(header: int, address: RingAddress) -> tuple[int, int]:
    words = _words(header)
    slots, slot_bytes = words[_SLOTS], words[_SLOT_BYTES]
    is_shaped = 0 < slots <= MAX_BYTES and 0 < slot_bytes <= MAX_BYTES // slots and slot_bytes % 8 == 0
    size = HEADER + (slots * slot_bytes if address.cuda_handle is None else 0)
    if words[0] != MAGIC or not is_shaped or os.fstat(header).st_size < size:
        expected = f"a ring of slots of a multiple of 8 bytes, {MAX_BYTES} bytes at most"
        raise InvalidRequest("options.output.ring.name", expected, "memory that begins otherwise")
    return slots, slot_bytes


def check_ring(address: RingAddress | None, directory: Path = DIRECTORY) -> None:
    """Raise InvalidRequest unless the ring at `address`, if any, has a valid header.

    GPU memory is not opened, because that would create a CUDA context of half a gigabyte in this process.
    """
    if address is None:
        return
    header = _open_header(address, directory)
    try:
        _read_shape(header, address)
    finally:
        os.close(header)
