"""MAC of the records that the models of a server exchange, and the file with its key."""

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

# In a subfolder, because Triton's shared-memory API can name any file directly in /dev/shm.
FOLDER = Path(f"/dev/shm/stretto_keys_{os.geteuid()}")


KEY = 32
TAG = 16


class Seal:
    """Message authentication code (MAC) with one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def close(self, name: str, record: bytes, *arrays: np.ndarray | None) -> bytes:
        """Return `record` preceded by its MAC, which covers the arrays and is valid only under this name."""
        return self._tag(name, record, arrays) + record

    def open(self, name: str, sealed: bytes, *arrays: np.ndarray | None) -> bytes:
        """Verify the MAC of `sealed`, the result of `close` with the same name and arrays, and return the record."""
        tag = sealed[:TAG]
        record = sealed[TAG:]
        if not hmac.compare_digest(tag, self._tag(name, record, arrays)):
            raise InvalidRequest(name, "a record authenticated by this server", "another record")
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
    """Key shared by the models of one server, in a file that exists while any model uses it.

    Each process that uses the key holds a shared lock on the file until it ends; an unlocked file is removed.

    Args:
        folder: Folder of the key files, accessible only to the user who runs the server.
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
        return Seal(self._key)

    def close(self) -> None:
        """Release the key; the last release removes the file."""
        with _locked(self._path.parent):
            os.close(self._descriptor)
            _remove_stale(self._path.parent)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on `folder`, created if missing; raise PermissionError if other users can access it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != 0o700:
            raise PermissionError(f"{folder} must be accessible to this user only (mode 0700)")
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
    """Return the start time of a process, in clock ticks after boot."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return fields[19]  # field 22; pid and name, which may contain anything, are cut off
