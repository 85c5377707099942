"""Flow-control slots in shared memory: decoder progress per utterance as read by the language model."""

import fcntl
import mmap
import os
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from stretto.errors import Overloaded, StrettoError
from stretto.records.chunk import MAX_GENERATION, TABLE, FlowAddress
from stretto.streams.chunking import DecoderLoad

DIRECTORY = Path("/dev/shm")
PREFIX = "stretto_flow_"
MAGIC = b"STRETTO5"
WORDS, HEAD_WORDS = 64, 5  # words of a slot, and of its head
MAX_REASON_BYTES = (WORDS - HEAD_WORDS) * 8
LATENCY_HALF_LIFE_S = 1.0


class DecoderFailed(StrettoError):
    """The decoder could not continue an utterance, and has logged the reason."""


class DecoderRefused(StrettoError):
    """The decoder found a client's mistake, e.g. in its ring."""


class DecoderStalled(StrettoError):
    """The decoder has not answered a chunk for too long."""


class Outcome(IntEnum):
    """State of an utterance at the decoder: wanted, or over for a reason."""

    OPEN = 0
    CANCELLED = 1
    FAILED = 2
    OVERLOADED = 3
    REFUSED = 4
    CLOSING = 5


class FlowTable:
    """Memory of a table. `create` owns and locks the file; `open` only writes into it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Map the file; the caller keeps the descriptor, which the mapping does not need."""
        self.path = path
        self._lock: int | None = None
        self._map = mmap.mmap(descriptor, 0)
        if self._map[: len(MAGIC)] != MAGIC:
            raise ValueError(f"{path} is not a flow table")
        self._words = memoryview(self._map).cast("q")
        self._counting = threading.Lock()
        self._free = deque(range(1, len(self._words) // WORDS))
        self.clock = time.monotonic  # equal in all processes of a host

    @classmethod
    def create(cls, server_pid: int, num_slots: int = 1024, directory: Path = DIRECTORY) -> "FlowTable":
        """Create a table for the server with this pid, after removing tables of dead owners."""
        remove_stale_tables(directory)
        path = directory / f"{PREFIX}{server_pid}_{secrets.token_hex(16)}"
        unlocked = path.with_name(f".{path.name}")  # hidden name, so that it is not mistaken for a stale table
        descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # All of it now: a write to a page that shared memory lacks later would end the process (SIGBUS).
            os.posix_fallocate(descriptor, 0, (num_slots + 1) * WORDS * 8)
            os.pwrite(descriptor, MAGIC, 0)
            unlocked.rename(path)
            table = cls(path, descriptor)
            table._lock = descriptor
            return table
        except BaseException:
            unlocked.unlink(missing_ok=True)
            os.close(descriptor)
            raise

    @classmethod
    def open(cls, name: str, directory: Path = DIRECTORY) -> "FlowTable":
        """Open the table of another process by its file name."""
        if not re.fullmatch(TABLE, name):
            raise ValueError(f"{name!r} is not the name of a flow table")
        descriptor = os.open(directory / name, os.O_RDWR | os.O_NOFOLLOW)
        try:
            if os.fstat(descriptor).st_uid != os.geteuid():
                raise ValueError(f"{name} is another user's")
            return cls(directory / name, descriptor)
        finally:
            os.close(descriptor)

    def claim(self) -> "FlowSlot":
        """Return a slot for a new utterance; raise Overloaded if none is free."""
        if not self._free:
            raise Overloaded(f"{len(self._words) // WORDS - 1} utterances are already in flight")
        generation = 1 + secrets.randbelow(MAX_GENERATION)
        slot = FlowSlot(self, FlowAddress(self.path.name, self._free.popleft(), generation))
        at = slot.address.slot * WORDS
        for word in range(1, HEAD_WORDS):
            self._words[at + word] = 0
        self._words[at] = generation
        return slot

    def release(self, address: FlowAddress) -> None:
        """Release the slot; later writes for this generation are ignored."""
        assert self._words[address.slot * WORDS] == address.generation, address
        self._words[address.slot * WORDS] = 0
        self._free.append(address.slot)  # at the other end of the queue, so that a slot is not reused immediately

    def slot_at(self, address: FlowAddress) -> "FlowSlot":
        """Return the slot at an address; raise ValueError if the table has none such."""
        if not 1 <= address.slot < len(self._words) // WORDS:
            raise ValueError(f"slot {address.slot} is not in {self.path.name}")
        return FlowSlot(self, address)

    def num_active(self) -> int:
        """Number of claimed slots."""
        return sum(self._words[at] != 0 for at in range(WORDS, len(self._words), WORDS))

    def holds(self, address: FlowAddress) -> bool:
        """Return True if the utterance still has its slot."""
        return self._words[address.slot * WORDS] == address.generation

    def read(self, address: FlowAddress, word: int) -> int:
        """Return one word of the slot, 0 if the utterance no longer has it."""
        return self._words[address.slot * WORDS + word] if self.holds(address) else 0

    def count(self, address: FlowAddress) -> None:
        """Count one more answer; thread-safe among the decoder's threads."""
        with self._counting:
            if self.holds(address):
                self._words[address.slot * WORDS + 1] += 1

    def note_progress(self, address: FlowAddress) -> None:
        """Signal progress of the utterance; for the decoder's own thread."""
        if self.holds(address):
            self._words[address.slot * WORDS + 4] += 1

    @property
    def load(self) -> DecoderLoad:
        """Return the decoder's recent load; zeros before the first samples."""
        return DecoderLoad(self._latency_us(int(1e6 * self.clock())) / 1e6, self._words[3] / 1e6)

    def note_latency(self, seconds: float) -> None:
        """Record the latency of a chunk with samples; the decaying maximum counts."""
        at_us = int(1e6 * self.clock())
        self._words[1] = max(int(1e6 * seconds), self._latency_us(at_us))
        self._words[2] = at_us

    def _latency_us(self, at_us: int) -> int:
        """Return the last latency, decayed to the given time."""
        return int(self._words[1] * 0.5 ** ((at_us - self._words[2]) / 1e6 / LATENCY_HALF_LIFE_S))

    def set_pace(self, seconds: float) -> None:
        """Set the interval at which an utterance may send chunks, in seconds."""
        self._words[3] = int(1e6 * seconds)

    def conclude(self, address: FlowAddress, outcome: Outcome, reason: str) -> None:
        """Set the outcome unless it is set already."""
        at = address.slot * WORDS
        if not self.holds(address) or self._words[at + 2]:
            return
        text = reason.encode(errors="replace")[:MAX_REASON_BYTES]
        start = (at + HEAD_WORDS) * 8
        self._map[start : start + len(text)] = text
        self._words[at + 3] = len(text)
        self._words[at + 2] = outcome  # written last, so that readers find a complete reason

    def reason(self, address: FlowAddress) -> str:
        """Return the reason given to `conclude`."""
        start = (address.slot * WORDS + HEAD_WORDS) * 8
        return bytes(self._map[start : start + self.read(address, 3)]).decode(errors="replace")

    def conclude_all(self, outcome: Outcome, reason: str) -> None:
        """Set the outcome of every unfinished utterance, and count all of its chunks as answered."""
        for slot in range(1, len(self._words) // WORDS):
            if generation := self._words[slot * WORDS]:
                self.conclude(FlowAddress(self.path.name, slot, generation), outcome, reason)
                self._words[slot * WORDS + 1] = 1 << 62  # more than any utterance can send

    def forget_all(self) -> None:
        """Release every slot, because the owner is dead."""
        for at in range(WORDS, len(self._words), WORDS):
            self._words[at] = 0

    def close(self) -> None:
        """Close the memory; the owner's lock is released."""
        self._words.release()
        self._map.close()
        if self._lock is not None:
            os.close(self._lock)

    def remove(self) -> None:
        """Close the memory and remove the file; for the owner."""
        self.close()
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class FlowSlot:
    """Slot of one utterance, used by both sides."""

    table: FlowTable
    address: FlowAddress

    @property
    def num_answered(self) -> int:
        """Number of chunks and probes answered by the decoder."""
        return self.table.read(self.address, 1)

    @property
    def is_held(self) -> bool:
        """True while the language model continues the utterance or waits for its answers."""
        return self.table.holds(self.address)

    @property
    def outcome(self) -> Outcome:
        """Outcome of the utterance."""
        return Outcome(self.table.read(self.address, 2))

    @property
    def reason(self) -> str:
        """Reason of the outcome."""
        return self.table.reason(self.address)

    @property
    def load(self) -> DecoderLoad:
        """Return the decoder's recent load."""
        return self.table.load

    def note_latency(self, seconds: float) -> None:
        """Record the latency of a chunk with samples."""
        self.table.note_latency(seconds)

    def set_pace(self, seconds: float) -> None:
        """Set the interval at which any utterance may send chunks, in seconds."""
        self.table.set_pace(seconds)

    def count_answer(self) -> None:
        """Count one more answered chunk or probe."""
        self.table.count(self.address)

    @property
    def progress(self) -> int:
        """Number of progress signals of the decoder."""
        return self.table.read(self.address, 4)

    def note_progress(self) -> None:
        """Signal progress, although nothing has been answered yet."""
        self.table.note_progress(self.address)

    def conclude(self, outcome: Outcome, reason: str = "") -> None:
        """End the utterance; the first outcome counts."""
        self.table.conclude(self.address, outcome, reason)

    def release(self) -> None:
        """Release the slot; for the language model at the end of the utterance."""
        self.table.release(self.address)


def conclude_all(server_pid: int, outcome: Outcome, reason: str, directory: Path = DIRECTORY) -> None:
    """End every utterance of the server with this pid, after the previous decoder has died."""
    for table in tables_of(server_pid, directory):
        table.conclude_all(outcome, reason)


def tables_of(server_pid: int, directory: Path = DIRECTORY) -> Iterator[FlowTable]:
    """Yield the tables of the server with this pid, each closed before the next; skip foreign files."""
    for path in directory.glob(f"{PREFIX}{server_pid}_*"):
        with suppress(OSError, ValueError), closing(FlowTable.open(path.name, directory)) as table:
            yield table


def remove_stale_tables(directory: Path = DIRECTORY) -> list[Path]:
    """Remove tables whose owner has died, and mark their utterances as over for remaining readers.

    The lock on a table ends with its owner in any pid namespace, so an unlocked table is stale.
    """
    removed = []
    for path in directory.glob(f"{PREFIX}*"):
        with suppress(OSError):  # it is gone, locked, or owned by another user
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                removed.append(path)
                with suppress(ValueError):  # incomplete, because its owner died while creating it
                    FlowTable(path, descriptor).forget_all()
            finally:
                os.close(descriptor)
    return removed


class FlowTables:
    """Tables opened by this process, by name; for the decoder."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self._directory = directory
        self._tables: dict[str, FlowTable] = {}

    def slot_at(self, address: FlowAddress) -> FlowSlot:
        """Return the slot at an address; open its table on first use, and close tables of dead owners."""
        if address.table not in self._tables:
            left = {name: table for name, table in self._tables.items() if table.path.exists()}
            self._tables = left | {address.table: FlowTable.open(address.table, self._directory)}
        return self._tables[address.table].slot_at(address)
