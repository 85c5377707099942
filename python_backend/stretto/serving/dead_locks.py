"""Release of mutexes in Triton's shared memory that belong to dead stubs.

WORKAROUND(triton): the Python backend keeps robust mutexes in shared memory, one of them for the memory itself
(shm_manager.h of python_backend r24.10). Locking a mutex of a dead owner raises Boost's `lock_exception`. A stub that
is killed while it holds the memory's mutex therefore aborts the server as soon as its model is unloaded: the objects in
that memory are freed by destructors, which may not throw.
"""

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

# pthread_mutex_t of glibc on 64-bit machines (sysdeps/nptl/bits/struct_mutex.h): lock, count, owner, users, kind.
HEAD = struct.Struct("<IIIII")
ROBUST_AND_SHARED = 0x90  # normal type, robust (0x10), process-shared (0x80)
KIND = re.compile(re.escape(struct.pack("<I", ROBUST_AND_SHARED)))
FREE = HEAD.pack(0, 0, 0, 0, ROBUST_AND_SHARED)
OWNER_DIED, TID = 0x40000000, 0x3FFFFFFF  # bits of the lock word (linux/futex.h)
PIECE = 1 << 22


def free_dead_locks(region: Path) -> int:
    """Release the mutexes of a shared-memory file whose owners have died.

    Args:
        region: Path of the file; files of other users are left unchanged.

    Returns:
        The number of mutexes released.

    Raises:
        OSError: The file does not exist.
    """
    descriptor = os.open(region, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if (found.st_uid, found.st_nlink) != (os.geteuid(), 1):
            return 0
        dead = [start for offset in range(0, found.st_size, PIECE) for start in _dead(descriptor, offset)]
        for start in dead:
            os.pwrite(descriptor, FREE, start)
        return len(dead)
    finally:
        os.close(descriptor)


def _dead(descriptor: int, offset: int) -> Iterator[int]:
    """Yield the file offsets of mutexes whose owner has died, which the kernel marks in the lock word."""
    data = os.pread(descriptor, PIECE + HEAD.size, offset)
    for found in KIND.finditer(data):
        start = found.end() - HEAD.size
        if start >= 0 and start % 8 == 0 and start < PIECE:
            lock, *_ = HEAD.unpack_from(data, start)
            if lock & OWNER_DIED and not lock & TID:
                yield offset + start
