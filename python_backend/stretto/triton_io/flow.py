"""What the decoder tells the language model about an utterance: one slot in shared memory each.

In an ensemble only the last step ever learns that a client went away, and nothing tells an earlier step how
far a later one has come. So the language model makes a table and claims a slot per utterance; the decoder opens
the table by the name that travels with every chunk, counts what it has answered, and says when all is over, and why.

    header   "STRETTO5" | latency | when that was | pace of the decoder, in us (`streams.chunking.DecoderLoad`)
    slot     generation | answered | outcome | length of the reason | progress   5 x int64, aligned: a store is atomic
             reason, UTF-8
"""

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
from stretto.records.envelope import MAX_GENERATION, TABLE, FlowAddress
from stretto.streams.chunking import DecoderLoad

DIRECTORY = Path("/dev/shm")
PREFIX = "stretto_flow_"
MAGIC = b"STRETTO5"
WORDS, HEAD_WORDS = 64, 5  # of a slot, and of its head
MAX_REASON_BYTES = (WORDS - HEAD_WORDS) * 8
LATENCY_HALF_LIFE_S = 1.0


class DecoderFailed(StrettoError):
    """The decoder could not go on with an utterance, and has logged why."""


class DecoderRefused(StrettoError):
    """The decoder has found a mistake of the client's, as in the ring that it has made."""


class DecoderStalled(StrettoError):
    """The decoder has not answered a chunk for too long."""


class Outcome(IntEnum):
    """How an utterance stands with the decoder: still wanted, or over and why."""

    OPEN = 0
    CANCELLED = 1
    FAILED = 2
    OVERLOADED = 3
    REFUSED = 4
    CLOSING = 5


class FlowTable:
    """The memory of a table; `create` owns the file and holds a lock on it, `open` only writes into it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, 0)
        if self._map[: len(MAGIC)] != MAGIC:
            raise ValueError(f"{path} is not a flow table")
        self._words = memoryview(self._map).cast("q")
        self._counting = threading.Lock()
        self._free = deque(range(1, len(self._words) // WORDS))
        self.clock = time.monotonic  # the same in all processes of a host

    @classmethod
    def create(cls, server_pid: int, num_slots: int = 1024, directory: Path = DIRECTORY) -> "FlowTable":
        """A new table for the server with this pid; tables whose owner is gone are removed first."""
        remove_stale_tables(directory)
        path = directory / f"{PREFIX}{server_pid}_{secrets.token_hex(16)}"
        unlocked = path.with_name(f".{path.name}")  # a name that nobody takes for a stale table
        descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, (num_slots + 1) * WORDS * 8)
        os.pwrite(descriptor, MAGIC, 0)
        unlocked.rename(path)
        return cls(path, descriptor)

    @classmethod
    def open(cls, name: str, directory: Path = DIRECTORY) -> "FlowTable":
        """The table that another process made, by its file name."""
        if not re.fullmatch(TABLE, name):
            raise ValueError(f"{name!r} is not the name of a flow table")
        descriptor = os.open(directory / name, os.O_RDWR | os.O_NOFOLLOW)
        try:
            if os.fstat(descriptor).st_uid != os.geteuid():
                raise ValueError(f"{name} is another user's")
            return cls(directory / name, descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def claim(self) -> "FlowSlot":
        """A slot for a new utterance; Overloaded when every slot is taken."""
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
        """Give the slot back; what the decoder still writes for this generation is ignored."""
        assert self._words[address.slot * WORDS] == address.generation, address
        self._words[address.slot * WORDS] = 0
        self._free.append(address.slot)  # the other end of the queue: a slot rests before its next tenant

    def at(self, address: FlowAddress) -> "FlowSlot":
        """The slot that an address names; ValueError where the table has none such."""
        if not 1 <= address.slot < len(self._words) // WORDS:
            raise ValueError(f"slot {address.slot} is not in {self.path.name}")
        return FlowSlot(self, address)

    def num_active(self) -> int:
        """Slots that belong to an utterance now."""
        return sum(self._words[at] != 0 for at in range(WORDS, len(self._words), WORDS))

    def holds(self, address: FlowAddress) -> bool:
        """Whether the utterance still has its slot."""
        return self._words[address.slot * WORDS] == address.generation

    def read(self, address: FlowAddress, word: int) -> int:
        """One word of the slot, 0 when the utterance no longer holds it."""
        return self._words[address.slot * WORDS + word] if self.holds(address) else 0

    def count(self, address: FlowAddress) -> None:
        """One more answer; the decoder's threads share the count."""
        with self._counting:
            if self.holds(address):
                self._words[address.slot * WORDS + 1] += 1

    def note_progress(self, address: FlowAddress) -> None:
        """What the utterance waits for goes on; for the decoder's own thread."""
        if self.holds(address):
            self._words[address.slot * WORDS + 4] += 1

    @property
    def load(self) -> DecoderLoad:
        """What the decoder has measured of late; nothing before the first samples."""
        return DecoderLoad(self._latency_us(int(1e6 * self.clock())) / 1e6, self._words[3] / 1e6)

    def note_latency(self, seconds: float) -> None:
        """A chunk with samples has taken the decoder so long; the longest counts, and is forgotten by and by."""
        at_us = int(1e6 * self.clock())
        self._words[1] = max(int(1e6 * seconds), self._latency_us(at_us))
        self._words[2] = at_us

    def _latency_us(self, at_us: int) -> int:
        """The latency noted last, as far as it still counts."""
        return int(self._words[1] * 0.5 ** ((at_us - self._words[2]) / 1e6 / LATENCY_HALF_LIFE_S))

    def set_pace(self, seconds: float) -> None:
        """How often an utterance may send a chunk, from now on."""
        self._words[3] = int(1e6 * seconds)

    def conclude(self, address: FlowAddress, outcome: Outcome, reason: str) -> None:
        """Set the outcome, once: what came first stays."""
        at = address.slot * WORDS
        if not self.holds(address) or self._words[at + 2]:
            return
        text = reason.encode(errors="replace")[:MAX_REASON_BYTES]
        start = (at + HEAD_WORDS) * 8
        self._map[start : start + len(text)] = text
        self._words[at + 3] = len(text)
        self._words[at + 2] = outcome  # last: who sees it finds the reason complete

    def reason(self, address: FlowAddress) -> str:
        """What `conclude` was told."""
        start = (address.slot * WORDS + HEAD_WORDS) * 8
        return bytes(self._map[start : start + self.read(address, 3)]).decode(errors="replace")

    def conclude_all(self, outcome: Outcome, reason: str) -> None:
        """Set the outcome of every utterance that has none yet, and count as answered what nobody will answer now."""
        for slot in range(1, len(self._words) // WORDS):
            if generation := self._words[slot * WORDS]:
                self.conclude(FlowAddress(self.path.name, slot, generation), outcome, reason)
                self._words[slot * WORDS + 1] = 1 << 62  # more than an utterance can have sent

    def forget_all(self) -> None:
        """Take every slot from its utterance: for whoever finds the owner dead."""
        for at in range(WORDS, len(self._words), WORDS):
            self._words[at] = 0

    def close(self) -> None:
        """Let go of the memory; the owner's lock falls."""
        self._words.release()
        self._map.close()
        os.close(self._descriptor)

    def remove(self) -> None:
        """Close, and remove the file: for the owner."""
        self.close()
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class FlowSlot:
    """One utterance's slot, seen from either side."""

    table: FlowTable
    address: FlowAddress

    @property
    def num_answered(self) -> int:
        """Chunks and probes that the decoder has answered."""
        return self.table.read(self.address, 1)

    @property
    def is_held(self) -> bool:
        """Whether the language model still goes on with the utterance, or waits for its answers."""
        return self.table.holds(self.address)

    @property
    def outcome(self) -> Outcome:
        """Whether the utterance is over, and how."""
        return Outcome(self.table.read(self.address, 2))

    @property
    def reason(self) -> str:
        """Why it is over."""
        return self.table.reason(self.address)

    @property
    def load(self) -> DecoderLoad:
        """What the decoder has measured of late, of whatever utterance."""
        return self.table.load

    def note_latency(self, seconds: float) -> None:
        """A chunk with samples has taken the decoder so long."""
        self.table.note_latency(seconds)

    def set_pace(self, seconds: float) -> None:
        """How often any utterance may send a chunk."""
        self.table.set_pace(seconds)

    def count_answer(self) -> None:
        """One more chunk or probe is answered."""
        self.table.count(self.address)

    @property
    def progress(self) -> int:
        """How often the decoder has told that what the utterance waits for goes on."""
        return self.table.read(self.address, 4)

    def note_progress(self) -> None:
        """What the utterance waits for goes on, though nothing is answered yet."""
        self.table.note_progress(self.address)

    def conclude(self, outcome: Outcome, reason: str = "") -> None:
        """Nothing more of this utterance is wanted; the first outcome stays."""
        self.table.conclude(self.address, outcome, reason)

    def release(self) -> None:
        """Give the slot back: for the language model, when the utterance is over."""
        self.table.release(self.address)


def conclude_all(server_pid: int, outcome: Outcome, reason: str, directory: Path = DIRECTORY) -> None:
    """End every utterance that is in flight in the server with this pid: for a decoder that finds the last one dead."""
    for table in tables_of(server_pid, directory):
        table.conclude_all(outcome, reason)


def tables_of(server_pid: int, directory: Path = DIRECTORY) -> Iterator[FlowTable]:
    """The tables of the server with this pid, each closed with the next; what others put beside them is passed over."""
    for path in directory.glob(f"{PREFIX}{server_pid}_*"):
        with suppress(OSError, ValueError), closing(FlowTable.open(path.name, directory)) as table:
            yield table


def remove_stale_tables(directory: Path = DIRECTORY) -> list[Path]:
    """Remove the tables whose owner has died, and tell who still reads them that all in them is over.

    Nobody holds the lock of such a table: it outlives no process, whatever pid namespace that lived in.
    """
    removed = []
    for path in directory.glob(f"{PREFIX}*"):
        with suppress(OSError):  # it is gone, held, or another user's
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                removed.append(path)
                with suppress(ValueError):  # one that its owner had only begun to make
                    FlowTable(path, descriptor).forget_all()
            finally:
                os.close(descriptor)
    return removed
