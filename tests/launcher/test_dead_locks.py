"""A mutex whose owner was killed is released; one that is still held is not."""

import ctypes
import errno
import mmap
import os
import signal
from pathlib import Path

import pytest

from stretto.launcher.triton_24_10 import dead_locks
from stretto.launcher.triton_24_10.dead_locks import PIECE, free_dead_locks

LIBC = ctypes.CDLL(None)
ROBUST, SHARED = 1, 1  # pthread.h
PLACES = (64, 4096 + 8)  # of mutexes in the file
PIECES = (PIECE, 4096 + 16)  # the second of which ends in a mutex


class Region:
    """File with mutexes in Boost's layout."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(8192))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        attributes = ctypes.create_string_buffer(64)
        LIBC.pthread_mutexattr_init(attributes)
        LIBC.pthread_mutexattr_setpshared(attributes, SHARED)
        LIBC.pthread_mutexattr_setrobust(attributes, ROBUST)
        for place in PLACES:
            assert LIBC.pthread_mutex_init(self.mutex(place), attributes) == 0

    def mutex(self, place: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(self._start + place)

    def die_with(self, *places: int) -> None:
        """Kill a process while it holds these mutexes."""
        pid = os.fork()
        if pid == 0:
            for place in places:
                LIBC.pthread_mutex_lock(self.mutex(place))
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)

    def take(self, place: int) -> int:
        return LIBC.pthread_mutex_trylock(self.mutex(place))


@pytest.fixture
def region(tmp_path: Path) -> Region:
    return Region(tmp_path / "region")


def test_locking_a_dead_owners_mutex_returns_eownerdead(region: Region) -> None:
    region.die_with(PLACES[0])
    assert region.take(PLACES[0]) == errno.EOWNERDEAD


@pytest.mark.parametrize("piece", PIECES)
def test_mutexes_of_dead_processes_are_freed(region: Region, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(dead_locks, "PIECE", piece)
    region.die_with(*PLACES)
    assert free_dead_locks(region.path) == 2
    assert [region.take(place) for place in PLACES] == [0, 0]
    assert LIBC.pthread_mutex_unlock(region.mutex(PLACES[0])) == 0
    assert free_dead_locks(region.path) == 0


def test_mutexes_held_by_live_processes_are_unchanged(region: Region) -> None:
    assert region.take(PLACES[1]) == 0
    assert free_dead_locks(region.path) == 0
    assert region.take(PLACES[1]) == errno.EBUSY


def test_memory_without_a_real_mutex_is_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "region"
    data = b"\x90\0\0\0" * 100 + os.urandom(1000) + b"\x90\0\0"
    for written in (b"", data):
        path.write_bytes(written)
        assert free_dead_locks(path) == 0
        assert path.read_bytes() == written
