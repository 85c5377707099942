"""Output rings in shared or GPU memory, and answers that wait for free slots."""

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
from stretto.triton_io.cuda_ring import CudaRings
from stretto.triton_io.flow import FlowSlot

DIRECTORY = Path("/dev/shm")
MAGIC = int.from_bytes(b"STRRING1", "little")
HEADER = 4096
MAX_BYTES = 1 << 28
MAX_CUDA_BYTES = 1 << 24
NUM_WORDS = 8
_SLOTS = 1
_SLOT_BYTES = 2
_RELEASED = 3


class Payload(Protocol):
    """Memory of a ring's slots."""

    is_on_device: bool

    def write(self, offset: int, data: np.ndarray, address: int | None) -> None:
        """Copy data, uint8 [n], to byte offset `offset` of the slots; `address` is the GPU address of the same data."""
        ...

    def close(self) -> None:
        """Release this process's access to the memory."""
        ...


class PcmRing:
    """Writer of one utterance's ring.

    The header, and slots in system memory, belong to the client, which may change them at any time. They are accessed
    as a file, because truncating a mapped file would kill this process. The sizes are read once, and all writes stay
    within them. Slots in GPU memory belong to this process.

    Args:
        shape: Number of slots, and bytes per slot.
    """

    def __init__(self, header: int, shape: tuple[int, int], payload: Payload):
        self._header = header
        self._payload = payload
        self._slots, self._slot_bytes = shape
        self._filled = 0

    @classmethod
    def open(cls, address: RingAddress, cuda: CudaRings, host: str = "", directory: Path = DIRECTORY) -> "PcmRing":
        """Open the ring at `address`; raise InvalidRequest if it is invalid, or Overloaded if GPU memory is in use."""
        header = _open_header(address, directory)
        try:
            shape = _read_shape(header, address)
            if address.memory == "system":
                return cls(header, shape, SystemPayload(header))
            return cls(header, shape, cuda.allocate(directory / address.name, shape[0] * shape[1], host))
        except BaseException:
            os.close(header)
            raise

    @property
    def is_on_device(self) -> bool:
        return self._payload.is_on_device

    def holds(self, samples: np.ndarray) -> bool:
        """Return True if `samples` [n] fit in the ring when all of its slots are free."""
        return samples.nbytes <= self._slots * self._slot_bytes

    def put(self, samples: np.ndarray, address: int | None = None) -> RingSlots | None:
        """Copy samples [n] to free slots; return the `ring` record of the event, or None if too few slots are free.

        A ring in GPU memory is filled from `address`, the samples' address on the GPU, if there is one.
        """
        data = np.ascontiguousarray(samples).view(np.uint8)
        needed = -(-len(data) // self._slot_bytes)
        first = self._filled
        if first + needed > _words(self._header)[_RELEASED] + self._slots:
            return None
        offset = first % self._slots * self._slot_bytes
        end = self._slots * self._slot_bytes - offset  # bytes that fit before the ring wraps
        self._payload.write(offset, data[:end], address)
        if len(data) > end:
            self._payload.write(0, data[end:], None if address is None else address + end)
        self._filled = first + needed
        return {"slot": first, "slots": needed, "samples": len(samples), "dtype": str(samples.dtype)}

    def close(self) -> None:
        """Close the file, and free slots in GPU memory; the client removes the file."""
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
        """Copy `data`, uint8 [n], to the byte offset `offset`."""
        written = os.pwrite(self._file, data.data, HEADER + offset)
        if written < len(data):
            raise InvalidRequest(FIELD, "enough shared memory for its slots", f"{written} of {len(data)} bytes")

    def close(self) -> None:
        """Do nothing: the file is closed with the header."""


def _open_header(address: RingAddress, directory: Path) -> int:
    """Return a descriptor of the ring's file; raise InvalidRequest if it does not exist or is a link."""
    try:
        header = os.open(directory / address.name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        got = f"{address.name}: {error.strerror}"
        raise InvalidRequest("options.output.ring.name", "shared memory of this host", got) from error
    status = os.fstat(header)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(header)
        raise InvalidRequest(
            "options.output.ring.name",
            "shared memory of this host",
            f"{address.name}: not a regular file, or a file with several hard links",
        )
    return header


def _words(header: int) -> tuple[int, ...]:
    words = os.pread(header, 8 * NUM_WORDS, 0)
    if len(words) < 8 * NUM_WORDS:
        raise InvalidRequest("options.output.ring.name", f"at least {HEADER} bytes", f"{len(words)} bytes")
    return struct.unpack(f"<{NUM_WORDS}q", words)


def _read_shape(header: int, address: RingAddress) -> tuple[int, int]:
    words = _words(header)
    slots = words[_SLOTS]
    slot_bytes = words[_SLOT_BYTES]
    limit, limit_described = (
        (MAX_BYTES, "at most") if address.memory == "system" else (MAX_CUDA_BYTES, "at most on a GPU")
    )
    is_shaped = 0 < slots <= limit and 0 < slot_bytes <= limit // slots and slot_bytes % 8 == 0
    size = HEADER + (slots * slot_bytes if address.memory == "system" else 0)
    if words[0] != MAGIC or not is_shaped or os.fstat(header).st_size < size:
        expected = f"a ring of slots of a multiple of 8 bytes, {limit} bytes {limit_described}"
        raise InvalidRequest("options.output.ring.name", expected, "memory with an invalid header")
    return slots, slot_bytes


def check_ring(address: RingAddress | None) -> None:
    """Raise InvalidRequest if `address` is not None and its ring has no valid header.

    The decoder allocates the GPU memory of a ring after this check.
    """
    if address is None:
        return
    header = _open_header(address, DIRECTORY)
    try:
        _read_shape(header, address)
    finally:
        os.close(header)


logger = logging.getLogger(__name__)
POLL_S = 0.002
SWEEP_S = 0.5
STALL_S = 30.0  # time without a released slot after which the client is considered gone


class RingReply(Protocol):
    """Answer to one chunk, as used by `RingWriter` (`ChunkReply`)."""

    def deliver(self, pcm: np.ndarray | None, event: Event) -> None: ...

    def fail(self, error: BaseException) -> None: ...

    def is_cancelled(self) -> bool: ...


Held = tuple[RingReply, np.ndarray | None, Event]


class RingWriter:
    """Ring of one utterance, with the answers that wait for free slots.

    The ring is closed before the last event is sent, so that a client that has read it can request another one.
    """

    def __init__(self, ring: PcmRing, slot: FlowSlot) -> None:
        self._ring = ring
        self.slot = slot
        self._held: deque[Held] = deque()
        self._lock = threading.Lock()
        self._moved_s = time.monotonic()
        self._is_open = True

    @property
    def is_on_device(self) -> bool:
        return self._ring.is_on_device

    @property
    def is_waiting(self) -> bool:
        return bool(self._held)

    @property
    def is_needed(self) -> bool:
        return self.slot.is_held

    def offer(self, reply: RingReply, pcm: np.ndarray | None, event: Event, address: int | None = None) -> None:
        """Send the response for a chunk if slots are free and no earlier response is queued; otherwise queue it.

        The GPU address of the samples [n] must be valid until this method returns. Later copies are from host memory.
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
                pcm = None
                event = {**event, "ring": record}
            if event["is_final"]:
                self._close_ring()  # before the last event, after which a client may request another ring
            self._held.popleft()
            reply.deliver(pcm, event)
            moved = True
            self._moved_s = time.monotonic()
        return moved


class RingWriters:
    """Ring writers of all utterances that have one, and the thread that flushes them.

    Args:
        device: Device of the decoder (`cpu`, `cuda:0`, …), which has the GPU memory of rings.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._cuda = CudaRings(device)
        self._writers: dict[str, RingWriter] = {}
        self._lock = threading.Lock()
        self._may_wait = threading.Event()
        stub.start_thread("rings", self._run)

    def __len__(self) -> int:
        return len(self._writers)

    def open(self, utterance: str, address: RingAddress, slot: FlowSlot, host: str = "") -> None:
        """Open the ring of an utterance if it is not open yet; raise the same errors as `PcmRing.open`."""
        if utterance in self._writers:  # only the chunks of this utterance open its ring, one after another
            return
        writer = RingWriter(PcmRing.open(address, self._cuda, host), slot)  # allocates memory of the GPU
        with self._lock:
            self._writers[utterance] = writer
        self._may_wait.set()

    def get(self, utterance: str) -> RingWriter | None:
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
        over = {}
        with self._lock:
            for utterance, writer in list(self._writers.items()):
                with self._dropping_failed(utterance):
                    if not writer.is_needed:
                        over[utterance] = self._writers.pop(utterance)
            if not self._writers:
                self._may_wait.clear()
        for utterance, writer in over.items():
            with self._dropping_failed(utterance):
                writer.close()  # frees memory of the GPU

    @contextmanager
    def _dropping_failed(self, utterance: str) -> Iterator[None]:
        """Drop the writer if the `with` block fails, so that the thread can serve the others."""
        try:
            yield
        except Exception:
            logger.exception("the ring of utterance %s is abandoned", utterance)
            self._writers.pop(utterance, None)
