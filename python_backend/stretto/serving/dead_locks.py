"""Locks that a dead stub has left locked in Triton's shared memory.

Triton's Python backend keeps robust mutexes there, one for the memory itself (shm_manager.h of python_backend r24.10).
Whoever asks for one of a dead owner gets Boost's `lock_exception`. A stub that is killed while it holds that of the
memory so ends the server as soon as its model is unloaded: there the memory's objects are freed by destructors, which
may not throw.
"""

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

# pthread_mutex_t of glibc on 64-bit machines (sysdeps/nptl/bits/struct_mutex.h): lock, count, owner, users, kind.
HEAD = struct.Struct("<IIIII")
ROBUST_AND_SHARED = 0x90  # a normal mutex that is robust (0x10) and shared among processes (0x80)
KIND = re.compile(re.escape(struct.pack("<I", ROBUST_AND_SHARED)))
FREE = HEAD.pack(0, 0, 0, 0, ROBUST_AND_SHARED)
OWNER_DIED, TID = 0x40000000, 0x3FFFFFFF  # of the lock word (linux/futex.h)
PIECE = 1 << 22


def free_dead_locks(region: Path) -> int:
    """Free the mutexes of a file of ours whose owners have died; how many there were. OSError where it is gone."""
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
    """Where mutexes begin in a piece whose owners have died: the kernel has said so in their lock words."""
    data = os.pread(descriptor, PIECE + HEAD.size, offset)
    for found in KIND.finditer(data):
        start = found.end() - HEAD.size
        if start >= 0 and start % 8 == 0 and start < PIECE:
            lock, *_ = HEAD.unpack_from(data, start)
            if lock & OWNER_DIED and not lock & TID:
                yield offset + start
