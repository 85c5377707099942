"""The mark by which a step of the ensemble knows what another step of the same server has written.

Triton lets anybody call any model, so every record that goes from one of our models to the next carries a keyed hash of
itself and of the arrays beside it. The models run in processes of their own that share nothing but the server which
started them: the first to come leaves a key where only its own user may read, under the server's pid and start time.

    sealed record    tag, TAG bytes │ record
"""

import fcntl
import hmac
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np

from stretto.errors import InvalidRequest

# In a folder, where Triton's shared-memory API cannot name it: that takes what lies in /dev/shm itself.
FOLDER = Path(f"/dev/shm/stretto_keys_{os.geteuid()}")
KEY, TAG = 32, 16


class Seal:
    """Seals records, and opens what was sealed with the same key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def close(self, name: str, record: bytes, *arrays: np.ndarray | None) -> bytes:
        """`record`, sealed as tensor `name` together with the arrays that travel beside it."""
        return self._tag(name, record, arrays) + record

    def open(self, name: str, sealed: bytes, *arrays: np.ndarray | None) -> bytes:
        """The record in `sealed`; InvalidRequest unless it was sealed as `name` with these arrays."""
        tag, record = sealed[:TAG], sealed[TAG:]
        if not hmac.compare_digest(tag, self._tag(name, record, arrays)):
            raise InvalidRequest(name, "what a step of this server has sealed", "something else")
        return record

    def _tag(self, name: str, record: bytes, arrays: tuple[np.ndarray | None, ...]) -> bytes:
        shapes = [None if array is None else (array.dtype.str, array.shape) for array in arrays]
        tag = blake2b(f"{len(record)} {shapes} ".encode(), key=self._key, digest_size=TAG, person=name.encode())
        tag.update(record)
        for array in arrays:
            if array is not None:
                tag.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return tag.digest()


class SealKey:
    """The key of the server with this pid, held for as long as this process uses it.

    Who holds a key has a lock on its file, which falls with the process: a file that nobody has locked is removed.
    """

    def __init__(self, server_pid: int, folder: Path = FOLDER) -> None:
        self._path = folder / f"{server_pid}_{_start_time(server_pid)}"
        with _locked(folder):
            _remove_stale(folder)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            self._key = os.pread(self._descriptor, KEY, 0)
            if not self._key:
                self._key = secrets.token_bytes(KEY)
                os.pwrite(self._descriptor, self._key, 0)

    @property
    def seal(self) -> Seal:
        """The seal of this key."""
        return Seal(self._key)

    def close(self) -> None:
        """Let go of the key; the last to do so removes it."""
        with _locked(self._path.parent):
            os.close(self._descriptor)
            _remove_stale(self._path.parent)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder, made if it is not there, for one process at a time; PermissionError if others may look into it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != 0o700:
            raise PermissionError(f"{folder} must belong to this user alone (mode 0700)")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(folder: Path) -> None:
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        finally:
            os.close(descriptor)


def _start_time(pid: int) -> str:
    """When a process started, in clock ticks since the host did."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[19]  # the 22nd of all: the pid and the name, which may hold anything, are cut off
