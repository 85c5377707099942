"""Output rings in client-owned shared memory, and the replies that wait for room in them."""

import base64
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
from stretto.records.event import Event, RingSlots
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
    mapped, a truncated file would kill this process. Its shape is read once, and all writes stay within these bounds.
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
            raise InvalidRequest(FIELD, "enough shared memory for its slots", f"{written} of {len(data)} bytes")

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
        raise InvalidRequest("options.output.ring.name", expected, "memory with another header")
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


logger = logging.getLogger(__name__)
POLL_S = 0.002
SWEEP_S = 0.5
STALL_S = 30.0  # time without a released slot after which the client counts as gone


class RingReply(Protocol):
    """Answer to one chunk, as used by a writer."""

    def deliver(self, pcm: np.ndarray | None, event: Event) -> None:
        """Send an event, with samples unless they are in the ring."""
        ...

    def fail(self, error: BaseException) -> None:
        """End the utterance with an error."""
        ...

    def is_cancelled(self) -> bool:
        """Return True if the client no longer waits for this answer."""
        ...


Held = tuple[RingReply, np.ndarray | None, Event]


class RingWriter:
    """Ring of one utterance with the replies that wait for room in it. The ring is closed before the last event."""

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

    def offer(self, reply: RingReply, pcm: np.ndarray | None, event: Event, address: int | None = None) -> None:
        """Answer a chunk in its turn, immediately if there is space.

        `address` is the GPU address of the samples, valid until this returns; replies that wait are copied from the
        host.
        """
        with self._lock:
            if not self._is_open:
                raise Cancelled("the utterance is over")
            self._held.append((reply, pcm, event))
            if len(self._held) == 1:
                self._moved_s = time.monotonic()
                try:
                    self._move(address)
                except BaseException:  # the offering side answers it and must not query it afterwards
                    self._held.clear()
                    raise

    def flush(self) -> None:
        """Answer the replies that have room now.

        End the utterance if its client has disconnected or stopped reading.
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
                self._give_up(error)

    def close(self) -> None:
        """Close the ring and fail the held replies."""
        with self._lock:
            self._give_up(Cancelled("the utterance is over"))
            self._let_go()

    def _let_go(self) -> None:
        if self._is_open:
            self._is_open = False
            self._ring.close()

    def _give_up(self, error: Exception) -> None:
        """End the utterance for every held reply, even if one cannot be answered."""
        while self._held:
            try:
                self._held.popleft()[0].fail(error)
            except Exception:
                logger.exception("a response waiting for its ring could not be sent")

    def _move(self, address: int | None = None) -> bool:
        """Answer held replies while there is room; return True if any was answered."""
        moved = False
        while self._held:
            reply, pcm, event = self._held[0]
            if pcm is not None and self._ring.holds(pcm):  # samples larger than the ring go with the response, in order
                record = self._ring.put(pcm, address)
                if record is None:
                    break
                pcm, event = None, {**event, "ring": record}
            if event["is_final"]:
                self._let_go()  # before the last event, after which a client may free its memory
            self._held.popleft()
            reply.deliver(pcm, event)
            moved, self._moved_s = True, time.monotonic()
        return moved


class RingWriters:
    """Writers of all utterances with a ring, and the thread that flushes them."""

    def __init__(self) -> None:
        self._writers: dict[str, RingWriter] = {}
        self._lock = threading.Lock()
        self._may_wait = threading.Event()
        stub.start_thread("rings", self._run)

    def __len__(self) -> int:
        return len(self._writers)

    def open(self, utterance: str, address: RingAddress, slot: FlowSlot) -> None:
        """Create the writer of an utterance, if it has none; raise InvalidRequest if there is no ring."""
        with self._lock:
            if utterance not in self._writers:
                self._writers[utterance] = RingWriter(PcmRing.open(address), slot)
                self._may_wait.set()

    def get(self, utterance: str) -> RingWriter | None:
        """Return the writer of an utterance, or None."""
        return self._writers.get(utterance)

    def _run(self) -> None:
        swept_s = time.monotonic()
        while True:
            self._may_wait.wait()
            waiting = [(name, writer) for name, writer in list(self._writers.items()) if writer.is_waiting]
            for utterance, writer in waiting:
                with self._dropping_what_fails(utterance):
                    writer.flush()
            if time.monotonic() - swept_s > SWEEP_S:
                swept_s = time.monotonic()
                self._sweep()
            time.sleep(POLL_S if waiting else 10 * POLL_S)

    def _sweep(self) -> None:
        """Close the writers of utterances whose flow slots have been released."""
        with self._lock:
            for utterance, writer in list(self._writers.items()):
                with self._dropping_what_fails(utterance):
                    if not writer.slot.is_held:
                        del self._writers[utterance]
                        writer.close()
            if not self._writers:
                self._may_wait.clear()

    @contextmanager
    def _dropping_what_fails(self, utterance: str) -> Iterator[None]:
        """Drop a writer that raises, so that the thread continues for the others."""
        try:
            yield
        except Exception:
            logger.exception("the ring of utterance %s is abandoned", utterance)
            self._writers.pop(utterance, None)
