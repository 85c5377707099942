"""Drain state of the server: whether it is stopping and accepts no new requests."""

import fcntl
import os
import threading
from pathlib import Path

from stretto.errors import Closing

DRAIN_FILE = "STRETTO_DRAIN_FILE"  # environment variable of the stubs: path of the launcher's file


class DrainGate:
    """Gate that is closed while the file named by the launcher exists; always open without a launcher.

    A passing request holds a lock that the launcher can see, because until the language model has the request nothing
    else shows that it exists.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._num_passing, self._mutex = 0, threading.Lock()
        self._lock = None if path is None else os.open(_lock_file(path), os.O_RDWR | os.O_CREAT, 0o600)

    @classmethod
    def from_environment(cls) -> "DrainGate":
        """Return the gate controlled by this process's launcher."""
        named = os.environ.get(DRAIN_FILE)
        return cls(Path(named) if named else None)

    def enter(self) -> None:
        """Admit one request, from any thread; raise Closing while the server drains."""
        if self._path is None or self._lock is None:
            return
        with self._mutex:  # all requests share one lock, because a descriptor can hold only one
            if not self._num_passing:
                # taken before the file is checked; the launcher checks in the opposite order
                fcntl.flock(self._lock, fcntl.LOCK_SH)
            self._num_passing += 1
        if self._path.exists():
            self.leave()
            raise Closing("server is draining")

    def leave(self) -> None:
        """Release one request."""
        if self._lock is None:
            return
        with self._mutex:
            self._num_passing -= 1
            if not self._num_passing:
                fcntl.flock(self._lock, fcntl.LOCK_UN)


def is_passing(path: Path) -> bool:
    """Return True if a request is passing the gate at `path`; called by the launcher."""
    if not _lock_file(path).exists():
        return False
    descriptor = os.open(_lock_file(path), os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lock_file(path: Path) -> Path:
    return path.with_name(f"{path.name}_passing")
