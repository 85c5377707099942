"""Whether the server is about to stop and takes no new requests."""

import fcntl
import os
import threading
from pathlib import Path

from stretto.errors import Closing

DRAIN_FILE = "STRETTO_DRAIN_FILE"  # in the environment of the stubs: where the launcher will put the file


class DrainGate:
    """Closed while the file exists that the launcher named in the environment; always open without a launcher.

    A request on its way through holds a lock that the launcher can see: until the language model has it, nothing
    else says that it is there.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._num_passing, self._mutex = 0, threading.Lock()
        self._lock = None if path is None else os.open(_lock_file(path), os.O_RDWR | os.O_CREAT, 0o600)

    @classmethod
    def from_environment(cls) -> "DrainGate":
        """The gate that this process's launcher controls."""
        named = os.environ.get(DRAIN_FILE)
        return cls(Path(named) if named else None)

    def enter(self) -> None:
        """Let one request in, from any thread; raises Closing when the server is draining."""
        if self._path is None or self._lock is None:
            return
        with self._mutex:  # all requests share one lock, as the descriptor of the file can hold but one
            if not self._num_passing:
                fcntl.flock(self._lock, fcntl.LOCK_SH)  # before the look at the file: the launcher looks the other way
            self._num_passing += 1
        if self._path.exists():
            self.leave()
            raise Closing("server is draining")

    def leave(self) -> None:
        """Let one request out."""
        if self._lock is None:
            return
        with self._mutex:
            self._num_passing -= 1
            if not self._num_passing:
                fcntl.flock(self._lock, fcntl.LOCK_UN)


def is_passing(path: Path) -> bool:
    """Whether a request is on its way through the gate at `path`: for the launcher."""
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
