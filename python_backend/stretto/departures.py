"""Whose client has gone away: the proxy marks it in a file of the launch, and the models look there.

The proxy cancels no call that one of our models answers. Of one that is cancelled at the moment in which a response of
it comes, Triton 2.51 uses what it has freed: it ends, or answers somebody else (server, pull requests 7840 and 8078).
"""

import itertools
import mmap
import os
import secrets
from pathlib import Path

DEPARTURES_FILE = "STRETTO_DEPARTURES_FILE"  # in the environment of the stubs: where the launcher has put it
STREAM = "stretto_stream"  # the parameter by which the proxy says which of its streams a request has come by
NUM_PLACES = 1 << 16  # many more than there are streams at a time: of those that share a place the last stands


class Departures:
    """The marks: of a stream that has been left its number, at the place that this has among all."""

    def __init__(self, path: Path) -> None:
        """Over a file that `create` has made; OSError where there is none."""
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            self._words = memoryview(mmap.mmap(descriptor, 8 * NUM_PLACES)).cast("q")
        finally:
            os.close(descriptor)
        self._numbers = itertools.count(1 + secrets.randbits(61))  # none that a proxy before this one has marked

    @staticmethod
    def create(path: Path) -> None:
        """Make the file, without a mark; FileExistsError where there is one."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.posix_fallocate(descriptor, 0, 8 * NUM_PLACES)  # a page that shared memory lacks later would be a SIGBUS
        os.close(descriptor)

    @classmethod
    def from_environment(cls) -> "Departures | None":
        """Those that this process's launcher has named; None without a launcher."""
        named = os.environ.get(DEPARTURES_FILE)
        return cls(Path(named)) if named else None

    def next_number(self) -> int:
        """The number of a new stream."""
        return next(self._numbers)

    def mark(self, number: int) -> None:
        """That stream's client has gone away."""
        self._words[number % NUM_PLACES] = number

    def has(self, number: int) -> bool:
        """Whether it is marked."""
        return self._words[number % NUM_PLACES] == number
