"""Output rings in clients' shared or GPU memory, and answers that wait for free slots."""

import base64
import fcntl
import logging
import os
import stat
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from stretto.errors import Cancelled, InvalidRequest
from stretto.records.chunk import Event, RingSlots
from stretto.records.sampling import FIELD, RingAddress
from stretto.triton_io import stub
from stretto.triton_io.callers import log_failure
from stretto.triton_io.cuda_memory import open_cuda_memory
from stretto.triton_io.flow import FlowSlot

DIRECTORY = Path("/dev/shm")
MAGIC = int.from_bytes(b"STRRING1", "little")
HEADER = 4096
MAX_BYTES = 1 << 28
NUM_WORDS = 8
_SLOTS, _SLOT_BYTES, _RELEASED, _OPEN = 1, 2, 3, 4


class Payload(Protocol):
    """Memory of a ring's slots."""

    is_on_device: bool

    def write(self, offset: int, data: np.ndarray, address: int | None) -> None:
        """Copy data to the slots.

        Args:
            offset: Byte offset in the slots.
            data: Data in host memory, uint8 [n].
            address: GPU address of the same data, or None.
        """
        ...

    def close(self) -> None:
        """Release this process's access to the memory."""
        ...


class PcmRing:
    """Writer of one utterance's ring.

    The memory belongs to the client, which may change it at any time. It is accessed as a file, because truncating a
    mapped file would kill this process. The sizes are read once, and all writes stay within them.

    Args:
        header: Descriptor of the file with the header.
        shape: Number of slots, and bytes per slot.
        payload: Memory of the slots.
    """

    def __init__(self, header: int, shape: tuple[int, int], payload: Payload):
        self._header, self._payload = header, payload
        self._slots, self._slot_bytes = shape
        self._filled = 0

    @classmethod
    def open(cls, address: RingAddress, directory: Path = DIRECTORY) -> "PcmRing":
        """Open the ring at `address`; raise InvalidRequest if it does not exist or its header is invalid."""
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
        """True if the ring's slots are in GPU memory."""
        return self._payload.is_on_device

    @property
    def has_owner(self) -> bool:
        """False if the ring's client has ended."""
        return is_locked(self._header)

    def holds(self, samples: np.ndarray) -> bool:
        """Return True if `samples` [n] fit in the ring when all of its slots are free."""
        return samples.nbytes <= self._slots * self._slot_bytes

    def put(self, samples: np.ndarray, address: int | None = None) -> RingSlots | None:
        """Copy samples to free slots.

        Args:
            samples: Samples [n].
            address: GPU address of the same samples, or None. A ring in GPU memory is filled from this address.

        Returns:
            The `ring` record of the event, or None if too few slots are free.
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
        """Close the files; the client removes the memory."""
        try:
            self._payload.close()
        finally:
            os.close(self._header)


class SystemPayload:
    """Slots in system memory, after the header in the same file."""

    is_on_device = False

    def __init__(self, header: int):
        self._file = header

    def write(self, offset: int, data: np.ndarray, address: int | None) -> None:
        """Copy `data`, uint8 [n], to the byte offset `offset`; `address` is not used."""
        written = os.pwrite(self._file, data.data, HEADER + offset)
        if written < len(data):
            raise InvalidRequest(FIELD, "enough shared memory for its slots", f"{written} of {len(data)} bytes")

    def close(self) -> None:
        """Do nothing: the file is closed with the header."""


class CudaPayload:
    """Slots in GPU memory.

    While they are open here, a flag in the header makes the client keep the memory. If the client ends, CUDA does not
    define what an access to its memory does, and an error would end this process. The client therefore holds a lock on
    the header, which the kernel releases when the client ends, and each write first checks that it is locked. Only a
    client that ends during a copy of microseconds is not noticed.
    """

    is_on_device = True

    def __init__(self, header: int, address: RingAddress, shape: tuple[int, int]):
        assert address.cuda_handle is not None
        self._header = header
        if not is_locked(header):
            raise InvalidRequest("options.output.ring.name", "a header that its client has locked", address.name)
        self._mark_open(is_open=True)
        try:
            _read_shape(header, address)  # a client that closes its ring after this check waits until we have closed it
            handle, num_bytes = base64.b64decode(address.cuda_handle), shape[0] * shape[1]
            self._memory = open_cuda_memory(handle, address.device, num_bytes)
        except BaseException:
            self._mark_open(is_open=False)
            raise

    def write(self, offset: int, data: np.ndarray, address: int | None) -> None:
        """Copy `data`, uint8 [n], to byte offset `offset`, from GPU address `address` if given.

        Raises:
            Cancelled: The client has ended.
        """
        if not is_locked(self._header):
            raise Cancelled("the client of the ring has ended")
        if address is None:
            self._memory.write(offset, data)
        else:
            self._memory.write_from(offset, address, len(data))

    def close(self) -> None:
        """Close the GPU memory, and record that in the header."""
        self._memory.close()
        self._mark_open(is_open=False)

    def _mark_open(self, is_open: bool) -> None:
        os.pwrite(self._header, struct.pack("<q", is_open), 8 * _OPEN)


def _open_header(address: RingAddress, directory: Path) -> int:
    """Return a descriptor of the ring's file; raise InvalidRequest if it does not exist or is a link."""
    try:
        header = os.open(directory / address.name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        got = f"{address.name}: {error.strerror}"
        raise InvalidRequest("options.output.ring.name", "shared memory of this host", got) from error
    found = os.fstat(header)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(header)
        raise InvalidRequest(
            "options.output.ring.name",
            "shared memory of this host",
            f"{address.name}: not a regular file, or a file with several hard links",
        )
    return header


def is_locked(header: int) -> bool:
    """Return True if another process, or another open file of this one, holds a lock on a file."""
    try:
        fcntl.flock(header, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(header, fcntl.LOCK_UN)
    return False


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
        raise InvalidRequest("options.output.ring.name", expected, "memory with an invalid header")
    return slots, slot_bytes


def check_ring(address: RingAddress | None, directory: Path = DIRECTORY) -> None:
    """Raise InvalidRequest if `address` is not None and its ring has no valid header.

    GPU memory is not opened, because that would create a CUDA context of half a gigabyte in this process.
    """
    if address is None:
        return
    header = _open_header(address, directory)
    try:
        _read_shape(header, address)
    finally:
        os.close(header)


logger = logging.getLogger(__name__)
POLL_S = 0.002
SWEEP_S = 0.5
STALL_S = 30.0  # time without a released slot after which the client is considered gone


class RingReply(Protocol):
    """Answer to one chunk, as used by `RingWriter`."""

    def deliver(self, pcm: np.ndarray | None, event: Event) -> None:
        """Send an event, with the samples if they are not in the ring."""
        ...

    def fail(self, error: BaseException) -> None:
        """End the utterance with an error."""
        ...

    def is_cancelled(self) -> bool:
        """Return True if the client is no longer waiting for this answer."""
        ...


Held = tuple[RingReply, np.ndarray | None, Event]


class RingWriter:
    """Ring of one utterance, with the answers that wait for free slots.

    The ring is closed before the last event is sent, because the client may then free its memory.
    """

    def __init__(self, ring: PcmRing, slot: FlowSlot) -> None:
        self._ring, self.slot = ring, slot
        self._held: deque[Held] = deque()
        self._lock = threading.Lock()
        self._moved_s = time.monotonic()
        self._is_open = True

    @property
    def is_on_device(self) -> bool:
        """True if samples go to GPU memory."""
        return self._ring.is_on_device

    @property
    def is_waiting(self) -> bool:
        return bool(self._held)

    @property
    def is_needed(self) -> bool:
        """False if the utterance is over, or the client of a ring in GPU memory has ended."""
        with self._lock:  # the ring is not closed meanwhile
            return self.slot.is_held and not (self._is_open and self._ring.is_on_device and not self._ring.has_owner)

    def offer(self, reply: RingReply, pcm: np.ndarray | None, event: Event, address: int | None = None) -> None:
        """Send the response for a chunk if slots are free and no earlier response is queued; otherwise queue it.

        Args:
            reply: Answer to the chunk.
            pcm: Samples [n], or None.
            event: Event of the chunk.
            address: GPU address of the samples, valid until this method returns, or None. Later copies are made from
                host memory.
        """
        with self._lock:
            if not self._is_open:
                raise Cancelled("the utterance is over")
            self._held.append((reply, pcm, event))
            if len(self._held) == 1:
                self._moved_s = time.monotonic()
                try:
                    self._move(address)
                except BaseException:  # the caller answers the chunk, and a reply must not be queried after that
                    self._held.clear()
                    raise

    def flush(self) -> None:
        """Send as many waiting answers as there are free slots for.

        The utterance ends if the client has disconnected, or has released no slot for STALL_S.
        """
        with self._lock:
            if not self._held:
                return
            try:
                if self._held[0][0].is_cancelled() or not self.slot.is_held or not self._is_open:
                    raise Cancelled("the client cancelled the request")
                if not self._move() and time.monotonic() - self._moved_s > STALL_S:
                    raise InvalidRequest("options.output.ring", f"slots released within {STALL_S:g} s", "none")
            except Exception as error:
                log_failure(error, "a client's ring")
                self._fail_all(error)

    def close(self) -> None:
        """Close the ring and fail the waiting answers."""
        with self._lock:
            self._fail_all(Cancelled("the utterance is over"))
            self._close_ring()

    def _close_ring(self) -> None:
        if self._is_open:
            self._is_open = False
            self._ring.close()

    def _fail_all(self, error: Exception) -> None:
        """Fail every waiting answer, even if one of them cannot be sent."""
        while self._held:
            try:
                self._held.popleft()[0].fail(error)
            except Exception:
                logger.exception("a response waiting for its ring could not be sent")

    def _move(self, address: int | None = None) -> bool:
        """Send waiting answers while slots are free; return True if any was sent."""
        moved = False
        while self._held:
            reply, pcm, event = self._held[0]
            if pcm is not None and self._ring.holds(pcm):  # samples larger than the ring are sent in the response
                record = self._ring.put(pcm, address)
                if record is None:
                    break
                pcm, event = None, {**event, "ring": record}
            if event["is_final"]:
                self._close_ring()  # before the last event, after which a client may free its memory
            self._held.popleft()
            reply.deliver(pcm, event)
            moved, self._moved_s = True, time.monotonic()
        return moved


class RingWriters:
    """Ring writers of all utterances that have one, and the thread that flushes them."""

    def __init__(self) -> None:
        self._writers: dict[str, RingWriter] = {}
        self._lock = threading.Lock()
        self._may_wait = threading.Event()
        stub.start_thread("rings", self._run)

    def __len__(self) -> int:
        return len(self._writers)

    def open(self, utterance: str, address: RingAddress, slot: FlowSlot) -> None:
        """Open the ring of an utterance if it is not open yet; raise InvalidRequest if that fails."""
        with self._lock:
            if utterance not in self._writers:
                self._writers[utterance] = RingWriter(PcmRing.open(address), slot)
                self._may_wait.set()

    def get(self, utterance: str) -> RingWriter | None:
        """Return the ring writer of an utterance, or None if it has no ring."""
        return self._writers.get(utterance)

    def _run(self) -> None:
        swept_s = time.monotonic()
        while True:
            self._may_wait.wait()
            waiting = [(name, writer) for name, writer in list(self._writers.items()) if writer.is_waiting]
            for utterance, writer in waiting:
                with self._dropping_failed(utterance):
                    writer.flush()
            if time.monotonic() - swept_s > SWEEP_S:
                swept_s = time.monotonic()
                self._sweep()
            time.sleep(POLL_S if waiting else 10 * POLL_S)

    def _sweep(self) -> None:
        """Close the writers that are not needed any more."""
        with self._lock:
            for utterance, writer in list(self._writers.items()):
                with self._dropping_failed(utterance):
                    if not writer.is_needed:
                        del self._writers[utterance]
                        writer.close()
            if not self._writers:
                self._may_wait.clear()

    @contextmanager
    def _dropping_failed(self, utterance: str) -> Iterator[None]:
        """Drop the writer if the `with` block fails, so that the thread can serve the others."""
        try:
            yield
        except Exception:
            logger.exception("the ring of utterance %s is abandoned", utterance)
            self._writers.pop(utterance, None)
