"""What the decoder tells the language model about an utterance: one slot in shared memory each.

In an ensemble only the last step ever learns that a client went away, and nothing tells an earlier step how
far a later one has come. So the language model makes a table and claims a slot per utterance; the decoder opens
the table by the name that travels with every chunk, counts what it has answered, and marks what is over.

    header   "STRETTO1"
    slot     generation | acknowledged chunks | cancelled | reserved       4 x int64, aligned: each store is atomic
"""

import fcntl
import mmap
import os
import secrets
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from python_backend.errors import Overloaded

DIRECTORY = Path("/dev/shm")
PREFIX = "stretto_flow_"
MAGIC = b"STRETTO1"
WORDS = 4  # per slot, and of the header


@dataclass(frozen=True, slots=True)
class FlowAddress:
    """Where the slot of an utterance is; `generation` tells it from the slot's earlier and later tenants."""

    table: str
    slot: int
    generation: int


class FlowTable:
    """The memory of a table; `create` owns the file and holds a lock on it, `open` only writes into it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, 0)
        if self._map[: len(MAGIC)] != MAGIC:
            raise ValueError(f"{path} is not a flow table")
        self._words = memoryview(self._map).cast("q")
        self._free = deque(range(1, len(self._words) // WORDS))
        self._generation = 0

    @classmethod
    def create(cls, server_pid: int, num_slots: int = 1024, directory: Path = DIRECTORY) -> "FlowTable":
        """A new table for the server with this pid; tables whose owner is gone are removed first."""
        remove_stale_tables(directory)
        path = directory / f"{PREFIX}{server_pid}_{secrets.token_hex(4)}"
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
        if "/" in name or not name.startswith(PREFIX):
            raise ValueError(f"{name!r} is not the name of a flow table")
        return cls(directory / name, os.open(directory / name, os.O_RDWR))

    def claim(self) -> "FlowSlot":
        """A slot for a new utterance; Overloaded when every slot is taken."""
        if not self._free:
            raise Overloaded(f"{len(self._words) // WORDS - 1} utterances are already in flight")
        self._generation += 1
        slot = FlowSlot(self, FlowAddress(self.path.name, self._free.popleft(), self._generation))
        at = slot.address.slot * WORDS
        self._words[at + 1], self._words[at + 2] = 0, 0
        self._words[at] = self._generation
        return slot

    def release(self, address: FlowAddress) -> None:
        """Give the slot back; what the decoder still writes for this generation is ignored."""
        assert self._words[address.slot * WORDS] == address.generation, address
        self._words[address.slot * WORDS] = 0
        self._free.append(address.slot)  # the other end of the queue: a slot rests before its next tenant

    def at(self, address: FlowAddress) -> "FlowSlot":
        """The slot that an address names."""
        return FlowSlot(self, address)

    def num_active(self) -> int:
        """Slots that belong to an utterance now."""
        return sum(self._words[at] != 0 for at in range(WORDS, len(self._words), WORDS))

    def read(self, address: FlowAddress, word: int) -> int | None:
        """One word of the slot, None when the utterance no longer holds it."""
        at = address.slot * WORDS
        return self._words[at + word] if self._words[at] == address.generation else None

    def write(self, address: FlowAddress, word: int, value: int) -> None:
        """Set one word of the slot while the utterance still holds it."""
        at = address.slot * WORDS
        if self._words[at] == address.generation:
            self._words[at + word] = value

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
    def num_acknowledged(self) -> int:
        """Chunks that the decoder has answered."""
        return self.table.read(self.address, 1) or 0

    @property
    def is_cancelled(self) -> bool:
        """Whether the client went away or the decoder failed."""
        return bool(self.table.read(self.address, 2))

    def acknowledge(self, index: int) -> None:
        """Chunk `index` and all before it are answered."""
        self.table.write(self.address, 1, index + 1)

    def cancel(self) -> None:
        """Nothing more of this utterance is wanted."""
        self.table.write(self.address, 2, 1)

    def release(self) -> None:
        """Give the slot back: for the language model, when the utterance is over."""
        self.table.release(self.address)


class FlowTables:
    """The tables that this process has opened, by name: for the decoder."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self._directory = directory
        self._tables: dict[str, FlowTable] = {}

    def at(self, address: FlowAddress) -> FlowSlot:
        """The slot of an address, its table opened on first use."""
        if address.table not in self._tables:
            self._tables[address.table] = FlowTable.open(address.table, self._directory)
        return self._tables[address.table].at(address)


def remove_stale_tables(directory: Path = DIRECTORY) -> list[Path]:
    """Remove the tables whose owner has died: nobody holds their lock. The lock outlives no process, whatever
    pid namespace it lived in."""
    removed = []
    for path in directory.glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError, PermissionError, BlockingIOError):
            descriptor = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                removed.append(path)
            finally:
                os.close(descriptor)
    return removed
