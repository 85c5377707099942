"""Acknowledgement table in shared memory, in which the language model reads what the decoder has answered."""

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
from stretto.records.flow_address import MAX_GENERATION, TABLE, FlowAddress
from stretto.streams.chunking import DecoderLoad, DecodingTime

DIRECTORY = Path("/dev/shm")
PREFIX = "stretto_flow_"
MAGIC = b"STRETTO6"
# words of a slot, and of its head
WORDS = 64
HEAD_WORDS = 5
MAX_REASON_BYTES = (WORDS - HEAD_WORDS) * 8
LATENCY_HALF_LIFE_S = 1.0
GAP_HALF_LIFE_S = 1.0
HAS_GRAPHS = 6  # word of the table's head


class DecoderFailed(StrettoError):
    """The decoder could not continue an utterance and has logged the reason."""


class DecoderRefused(StrettoError):
    """The decoder has detected a client error, for example an invalid ring."""


class DecoderStalled(StrettoError):
    """The decoder has not answered a chunk in time."""


class Outcome(IntEnum):
    """Outcome of an utterance, shared by language model and decoder; OPEN while it is in progress."""

    OPEN = 0
    CANCELLED = 1
    FAILED = 2
    OVERLOADED = 3
    REFUSED = 4
    CLOSING = 5


class DecayingBound:
    """Upper bound on recent measurements, which decays to the latest one.

    Args:
        half_life_s: Time in which the distance between the bound and the latest measurement halves.
    """

    def __init__(self, half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self._largest = 0.0
        self._latest = 0.0
        self._noted_s = 0.0

    def note(self, value: float, now_s: float) -> None:
        self._largest = max(value, self.value_at(now_s))
        self._latest = value
        self._noted_s = now_s

    def value_at(self, now_s: float) -> float:
        """Return the bound at `now_s`; 0 before the first measurement."""
        weight = 0.5 ** ((now_s - self._noted_s) / self._half_life_s)
        return self._latest + (self._largest - self._latest) * weight


class FlowTable:
    """Table of flow-control slots in a shared-memory file, one slot per utterance.

    The language model creates the table and owns its file; the decoder opens it and writes to the slots.

    Attributes:
        clock: Monotonic clock in seconds, the same in all processes of a host.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        """Map the file; the caller closes the descriptor."""
        self.path = path
        self._lock: int | None = None
        self._map = mmap.mmap(descriptor, 0)
        if self._map[: len(MAGIC)] != MAGIC:
            raise ValueError(f"{path} is not a flow table")
        self._words = memoryview(self._map).cast("q")
        self._counting = threading.Lock()
        self._num_slots = len(self._words) // WORDS - 1  # the first entry is the header
        self._free = deque(range(1, 1 + self._num_slots))
        self._speaking = set[int]()  # slots of utterances with audio
        self._frame_gap = DecayingBound(GAP_HALF_LIFE_S)  # used by the language model only, so it is not in the file
        self.clock = time.monotonic

    @classmethod
    def create(cls, server_pid: int, num_slots: int = 1024, directory: Path = DIRECTORY) -> "FlowTable":
        """Create a table, after removing the tables of dead owners."""
        remove_stale_tables(directory)
        path = directory / f"{PREFIX}{server_pid}_{secrets.token_hex(16)}"
        unlocked = path.with_name(f".{path.name}")  # hidden name, so that it is not mistaken for a stale table
        descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Allocated now: if shared memory is full, a later write to a new page would kill the process (SIGBUS).
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
        """Open another process's table by file name; raise ValueError if it is not this user's table."""
        if not re.fullmatch(TABLE, name):
            raise ValueError(f"{name!r} is not the name of a flow table")
        descriptor = os.open(directory / name, os.O_RDWR | os.O_NOFOLLOW)
        try:
            if os.fstat(descriptor).st_uid != os.geteuid():
                raise ValueError(f"{name} belongs to another user")
            return cls(directory / name, descriptor)
        finally:
            os.close(descriptor)

    def claim(self) -> "FlowSlot":
        """Return a free slot for a new utterance; raise Overloaded if there is none."""
        if not self._free:
            raise Overloaded(f"{self._num_slots} utterances are already in flight")
        generation = 1 + secrets.randbelow(MAX_GENERATION)
        slot = FlowSlot(self, FlowAddress(self.path.name, self._free.popleft(), generation))
        at = slot.address.slot * WORDS
        for word in range(1, HEAD_WORDS):
            self._words[at + word] = 0
        self._words[at] = generation
        return slot

    def release(self, address: FlowAddress) -> None:
        """Release the slot; later writes at this address are ignored."""
        assert self._words[address.slot * WORDS] == address.generation, address
        self._words[address.slot * WORDS] = 0
        self._free.append(address.slot)  # at the other end of the queue, so that a slot is not reused immediately
        self._speaking.discard(address.slot)

    def begin_speech(self, address: FlowAddress) -> None:
        """Count the utterance among those that generate speech, until its slot is released."""
        self._speaking.add(address.slot)

    def slot_at(self, address: FlowAddress) -> "FlowSlot":
        """Return the slot at an address; raise ValueError if the table has no such slot."""
        if not 1 <= address.slot <= self._num_slots:
            raise ValueError(f"slot {address.slot} is not in {self.path.name}")
        return FlowSlot(self, address)

    def num_active(self) -> int:
        return sum(self._words[at] != 0 for at in range(WORDS, len(self._words), WORDS))

    def holds(self, address: FlowAddress) -> bool:
        """Return True if the utterance still has its slot."""
        return self._words[address.slot * WORDS] == address.generation

    def read(self, address: FlowAddress, word: int) -> int:
        """Return one word of the slot, or 0 if the utterance has released it."""
        return self._words[address.slot * WORDS + word] if self.holds(address) else 0

    def count(self, address: FlowAddress) -> None:
        """Count one more answer; the decoder's threads may call this concurrently."""
        with self._counting:
            if self.holds(address):
                self._words[address.slot * WORDS + 1] += 1

    def note_progress(self, address: FlowAddress) -> None:
        """Increment the utterance's progress counter; only the decoder's own thread may call this."""
        if self.holds(address):
            self._words[address.slot * WORDS + 4] += 1

    @property
    def load(self) -> DecoderLoad:
        """Recent load of the decoder; its times are zeros before the first samples."""
        latency_s = self._latency_us(int(1e6 * self.clock())) / 1e6
        time = DecodingTime(*(nanoseconds / 1e9 for nanoseconds in self._words[3:6]))
        frame_gap_s = self._frame_gap.value_at(self.clock())
        return DecoderLoad(latency_s, time, len(self._speaking), bool(self._words[HAS_GRAPHS]), frame_gap_s)

    def note_gap(self, seconds: float) -> None:
        self._frame_gap.note(seconds, self.clock())

    def note_latency(self, seconds: float) -> None:
        """Record the latency of a chunk with samples, of which the load uses a decaying maximum."""
        at_us = int(1e6 * self.clock())
        self._words[1] = max(int(1e6 * seconds), self._latency_us(at_us))
        self._words[2] = at_us

    def _latency_us(self, at_us: int) -> int:
        """Return the decaying maximum of the latency at `at_us`, in microseconds."""
        return int(self._words[1] * 0.5 ** ((at_us - self._words[2]) / 1e6 / LATENCY_HALF_LIFE_S))

    def set_time(self, time: DecodingTime, has_graphs: bool) -> None:
        """Set the decoding time; `has_graphs` as in `DecoderLoad`."""
        self._words[HAS_GRAPHS] = has_graphs
        for word, seconds in enumerate((time.batch_s, time.window_s, time.frame_s), 3):
            self._words[word] = int(1e9 * seconds)

    def conclude(self, address: FlowAddress, outcome: Outcome, reason: str) -> None:
        """Set the outcome of an utterance, unless it has one, and the reason, a message for the client.

        The message is truncated to MAX_REASON_BYTES.
        """
        at = address.slot * WORDS
        if not self.holds(address) or self._words[at + 2]:
            return
        text = reason.encode(errors="replace")[:MAX_REASON_BYTES]
        start = (at + HEAD_WORDS) * 8
        self._map[start : start + len(text)] = text
        self._words[at + 3] = len(text)
        self._words[at + 2] = outcome  # written last, so that readers find a complete reason

    def reason(self, address: FlowAddress) -> str:
        start = (address.slot * WORDS + HEAD_WORDS) * 8
        return bytes(self._map[start : start + self.read(address, 3)]).decode(errors="replace")

    def conclude_all(self, outcome: Outcome, reason: str) -> None:
        """Set the outcome of every utterance that has none, and count all of its chunks as answered."""
        for slot in range(1, 1 + self._num_slots):
            if generation := self._words[slot * WORDS]:
                self.conclude(FlowAddress(self.path.name, slot, generation), outcome, reason)
                self._words[slot * WORDS + 1] = 1 << 62  # more than any utterance can send

    def forget_all(self) -> None:
        """Release every slot, because the owner is dead."""
        for at in range(WORDS, len(self._words), WORDS):
            self._words[at] = 0

    def close(self) -> None:
        """Unmap the memory, and release the owner's lock."""
        self._words.release()
        self._map.close()
        if self._lock is not None:
            os.close(self._lock)

    def remove(self) -> None:
        """Close the table and remove its file; only the owner may call this."""
        self.close()
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class FlowSlot:
    """Slot of one utterance, used by both the language model and the decoder; see `FlowTable`."""

    table: FlowTable
    address: FlowAddress

    @property
    def num_answered(self) -> int:
        """Number of chunks and probes answered by the decoder."""
        return self.table.read(self.address, 1)

    @property
    def is_held(self) -> bool:
        """True until the language model releases the slot at the end of the utterance."""
        return self.table.holds(self.address)

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.table.read(self.address, 2))

    @property
    def reason(self) -> str:
        return self.table.reason(self.address)

    @property
    def load(self) -> DecoderLoad:
        return self.table.load

    def note_latency(self, seconds: float) -> None:
        self.table.note_latency(seconds)

    def note_gap(self, seconds: float) -> None:
        self.table.note_gap(seconds)

    def set_time(self, time: DecodingTime, has_graphs: bool) -> None:
        self.table.set_time(time, has_graphs)

    def begin_speech(self) -> None:
        self.table.begin_speech(self.address)

    def count_answer(self) -> None:
        self.table.count(self.address)

    @property
    def progress(self) -> int:
        """Number of progress signals from the decoder for this utterance."""
        return self.table.read(self.address, 4)

    def note_progress(self) -> None:
        """Signal that the decoder still works on the utterance's unanswered chunks; only its thread may call this."""
        self.table.note_progress(self.address)

    def conclude(self, outcome: Outcome, reason: str = "") -> None:
        """End the utterance; only the first outcome has an effect."""
        self.table.conclude(self.address, outcome, reason)

    def release(self) -> None:
        self.table.release(self.address)


def conclude_all(server_pid: int, outcome: Outcome, reason: str, directory: Path = DIRECTORY) -> None:
    """End every utterance of a server after its decoder has died."""
    for table in tables_of(server_pid, directory):
        table.conclude_all(outcome, reason)


def tables_of(server_pid: int, directory: Path = DIRECTORY) -> Iterator[FlowTable]:
    """Yield the tables of a server, each closed before the next one is opened; skip files of other users."""
    for path in directory.glob(f"{PREFIX}{server_pid}_*"):
        with suppress(OSError, ValueError), closing(FlowTable.open(path.name, directory)) as table:
            yield table


def remove_stale_tables(directory: Path = DIRECTORY) -> list[Path]:
    """Remove the tables of owners that have died, and return their paths.

    An owner holds a lock on its table until it ends, in any pid namespace, so an unlocked table is stale. Processes
    that still have it open find its slots released.
    """
    removed = []
    for path in directory.glob(f"{PREFIX}*"):
        with suppress(OSError):  # the file is gone, locked, or owned by another user
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                removed.append(path)
                with suppress(ValueError):  # the table is incomplete, because its owner died while creating it
                    FlowTable(path, descriptor).forget_all()
            finally:
                os.close(descriptor)
    return removed


class FlowTables:
    """Tables that the decoder process has opened, keyed by name."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self._directory = directory
        self._tables: dict[str, FlowTable] = {}

    def slot_at(self, address: FlowAddress) -> FlowSlot:
        """Return the slot at an address, opening its table on first use and dropping tables whose files are gone."""
        if address.table not in self._tables:
            left = {name: table for name, table in self._tables.items() if table.path.exists()}
            self._tables = left | {address.table: FlowTable.open(address.table, self._directory)}
        return self._tables[address.table].slot_at(address)


class HeldSlots:
    """View of the language model's table, for a process that needs to know which utterances are in progress."""

    def __init__(self, server_pid: int, directory: Path = DIRECTORY) -> None:
        self._pattern = f"{PREFIX}{server_pid}_*"
        self._directory = directory
        self._table: FlowTable | None = None

    def has(self, slot: int, generation: int) -> bool:
        """Return True if an utterance holds the slot with this generation."""
        if self._table is None or not self._table.path.exists():  # the language model was restarted
            self._table = self._opened()
        table = self._table
        return table is not None and table.holds(FlowAddress(table.path.name, slot, generation))

    def _opened(self) -> FlowTable | None:
        for path in self._directory.glob(self._pattern):
            with suppress(OSError, ValueError):
                return FlowTable.open(path.name, self._directory)
        return None
