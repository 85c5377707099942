"""Client-disconnect flags shared from the proxy with the model processes through a memory-mapped file.

The proxy does not cancel calls that our models answer. If a call is cancelled at the moment at which one of its
responses arrives, Triton 2.51 uses freed memory: it crashes, or answers another client (server, pull requests 7840 and
8078).
"""

import itertools
import mmap
import os
import secrets
from pathlib import Path

DISCONNECTS_FILE = "STRETTO_DEPARTURES_FILE"  # environment variable of the stubs: path of the file
HOST = "stretto_host"  # request parameter set by the proxy: host of the client, used for fair-share limits
STREAM = "stretto_stream"  # request parameter set by the proxy: number of its stream
NUM_PLACES = 1 << 16  # many more than concurrent streams; streams that share a position overwrite each other


class Disconnects:
    """Disconnect flags: the number of each disconnected stream, at that number's position."""

    def __init__(self, path: Path) -> None:
        """Open the file that `create` has made; raise OSError if there is none."""
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            self._words = memoryview(mmap.mmap(descriptor, 8 * NUM_PLACES)).cast("q")
        finally:
            os.close(descriptor)
        # random start, so that numbers differ from those of an earlier proxy
        self._numbers = itertools.count(1 + secrets.randbits(61))

    @staticmethod
    def create(path: Path) -> None:
        """Create the file without flags; raise FileExistsError if it exists."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.posix_fallocate(descriptor, 0, 8 * NUM_PLACES)  # a page that shared memory lacks later would be a SIGBUS
        os.close(descriptor)

    @classmethod
    def from_environment(cls) -> "Disconnects | None":
        """Return the flags named by this process's launcher, or None without a launcher."""
        named = os.environ.get(DISCONNECTS_FILE)
        return cls(Path(named)) if named else None

    def next_number(self) -> int:
        """Return the number of a new stream."""
        return next(self._numbers)

    def record(self, number: int) -> None:
        """Record that the stream's client has disconnected."""
        self._words[number % NUM_PLACES] = number

    def has(self, number: int) -> bool:
        """Return True if the stream's client has disconnected."""
        return self._words[number % NUM_PLACES] == number
