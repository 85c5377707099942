"""Client-disconnect flags that the proxy shares with the model processes through a memory-mapped file.

The proxy does not cancel RPCs to our models in Triton. If a response arrives at the moment of a cancellation, Triton
2.51 uses freed memory: it crashes or sends the response to another client. See pull requests 7840 and 8078 of
triton-inference-server/server.
"""

import itertools
import mmap
import os
import secrets
from pathlib import Path

DISCONNECTS_FILE = "STRETTO_DISCONNECTS_FILE"  # environment variable of the stubs: path of the file
HOST = "stretto_host"  # request parameter set by the proxy: host of the client, used for fair-share limits
STREAM = "stretto_stream"  # request parameter set by the proxy: number of the client's stream
# far more than the number of concurrent streams, because streams with the same entry of the table overwrite each other
NUM_PLACES = 1 << 16


class Disconnects:
    """Flags of disconnected client streams, in a memory-mapped table.

    Each stream has a 64-bit number. A disconnected stream's number is stored at index `number % NUM_PLACES` of the
    table, in place of an earlier stream's.
    """

    def __init__(self, path: Path) -> None:
        """Open the file created by `create`; raise OSError if it does not exist."""
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            self._words = memoryview(mmap.mmap(descriptor, 8 * NUM_PLACES)).cast("q")
        finally:
            os.close(descriptor)
        # random start, so that the numbers differ from those of a previous proxy process
        self._numbers = itertools.count(1 + secrets.randbits(61))

    @staticmethod
    def create(path: Path) -> None:
        """Create the file with no flag set; raise FileExistsError if it exists."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        # allocate now: a page that cannot be allocated later causes a SIGBUS
        os.posix_fallocate(descriptor, 0, 8 * NUM_PLACES)
        os.close(descriptor)

    @classmethod
    def from_environment(cls) -> "Disconnects | None":
        """Open the file that the launcher has named in the environment; return None if there is no launcher."""
        named = os.environ.get(DISCONNECTS_FILE)
        return cls(Path(named)) if named else None

    def next_number(self) -> int:
        return next(self._numbers)

    def record(self, number: int) -> None:
        self._words[number % NUM_PLACES] = number

    def has(self, number: int) -> bool:
        """Return True if the client of stream `number` has disconnected."""
        return self._words[number % NUM_PLACES] == number
