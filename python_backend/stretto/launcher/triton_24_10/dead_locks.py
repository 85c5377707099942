"""Release of robust mutexes that a killed stub holds in the memory that it shares with Triton."""

import os
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from stretto.launcher.launch import own_region

# pthread_mutex_t of glibc on 64-bit machines (sysdeps/nptl/bits/struct_mutex.h): lock, count, owner, users, kind.
HEAD = struct.Struct("<IIIII")
ROBUST_AND_SHARED = 0x90  # normal type, robust (0x10), process-shared (0x80)
KIND = re.compile(re.escape(struct.pack("<I", ROBUST_AND_SHARED)))
FREE = HEAD.pack(0, 0, 0, 0, ROBUST_AND_SHARED)
# bits of the lock word (linux/futex.h)
OWNER_DIED = 0x40000000
TID = 0x3FFFFFFF
PIECE = 1 << 22


def free_dead_locks(region: Path) -> int:
    """Release the robust mutexes of dead owners in a file of this user, and return their number."""
    with own_region(region) as descriptor:
        if descriptor is None:
            return 0
        size = os.fstat(descriptor).st_size
        dead = [start for offset in range(0, size, PIECE) for start in _dead(descriptor, offset)]
        for start in dead:
            os.pwrite(descriptor, FREE, start)
        return len(dead)


def free_all(regions: Iterable[Path]) -> None:
    """Release the mutexes of dead owners in shared-memory files, on which Triton would abort with `lock_exception`."""
    for path in regions:
        with suppress(OSError):  # removed, or owned by another user
            free_dead_locks(path)


def _dead(descriptor: int, offset: int) -> Iterator[int]:
    """Yield the file offsets of mutexes whose owners the kernel has marked as dead."""
    data = os.pread(descriptor, PIECE + HEAD.size, offset)
    for match in KIND.finditer(data):
        start = match.end() - HEAD.size
        if start >= 0 and start % 8 == 0 and start < PIECE:
            lock, *_ = HEAD.unpack_from(data, start)
            if lock & OWNER_DIED and not lock & TID:
                yield offset + start
