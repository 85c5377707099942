"""Cleanup after dead servers: surviving processes and files in shared memory.

Everything that a launcher instance creates carries its id: shared-memory files in their names, processes in their
environment. A launcher instance holds a file lock while it is alive. An id whose lock is free therefore belongs to a
dead instance, even if pids of other containers are not visible.

Run as a program, this module waits for its parent, the given pid, to end, and then cleans up after it.
"""

import fcntl
import os
import re
import secrets
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stretto.departures import Departures
from stretto.serving import processes
from stretto.serving.dead_locks import free_dead_locks
from stretto.triton_io.flow import remove_stale_tables

SHARED_MEMORY = Path("/dev/shm")
PREFIX = "stretto_launch_"
LAUNCH_ID = "STRETTO_LAUNCH_ID"  # environment variable of its processes
IDS = re.compile(r"[0-9]+_[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Launch:
    """Identity of a live launcher instance.

    Attributes:
        id: Unique id.
        lock: Descriptor of the locked file.
        directory: Shared-memory directory.
    """

    id: str
    lock: int
    directory: Path

    @property
    def region_prefix(self) -> str:
        """Prefix of the names of the server's shared-memory regions."""
        return f"{PREFIX}{self.id}_"

    @property
    def folder(self) -> Path:
        """Runtime directory: sockets, key and drain file, accessible only to this user; kept over restarts."""
        return _folder(self.id, self.directory)

    @property
    def http_socket(self) -> Path:
        """Unix socket of Triton's HTTP service."""
        return self.folder / "http"

    @property
    def metrics_socket(self) -> Path:
        """Unix socket of Triton's metrics endpoint."""
        return self.folder / "metrics"

    @property
    def grpc_socket(self) -> Path:
        """Unix socket of Triton's gRPC service; Triton appends a colon and its port to this name."""
        return self.folder / "grpc"

    @property
    def drain_file(self) -> Path:
        """File that makes the preprocessor refuse new requests while it exists; writable only by this user."""
        return self.folder / "draining"

    @property
    def departures_file(self) -> Path:
        """Client-disconnect flags that the proxy sets for the models; writable only by this user."""
        return self.folder / "departures"

    def hide_regions(self) -> None:
        """Make Triton's shared-memory regions readable only by this user.

        Triton creates them readable for all users, and they contain text and audio of requests.
        """
        for path in self.directory.glob(f"{self.region_prefix}*"):
            with suppress(OSError):  # removed, or owned by another user
                descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    found = os.fstat(descriptor)
                    if (found.st_uid, found.st_nlink) == (os.geteuid(), 1):
                        os.fchmod(descriptor, 0o600)
                finally:
                    os.close(descriptor)

    def free_dead_locks(self) -> None:
        """Release robust mutexes owned by dead stubs in the server's shared memory.

        Otherwise Triton aborts with `lock_exception` when it next locks them.
        """
        for path in self.directory.glob(f"{self.region_prefix}*"):
            with suppress(OSError):  # removed, or owned by another user
                free_dead_locks(path)

    def clean(self) -> None:
        """End the processes and remove the shared memory of this instance's server, which has ended."""
        _remove_launch(self.id, self.directory)
        remove_stale_tables(self.directory)
        for path in self.folder.iterdir():
            if path.is_socket():
                path.unlink()

    def close(self) -> None:
        """Clean up and release the lock when the launcher ends."""
        self.clean()
        shutil.rmtree(self.folder)
        _lock_file(self.id, self.directory).unlink(missing_ok=True)
        os.close(self.lock)


def begin_launch(directory: Path = SHARED_MEMORY) -> Launch:
    """Create a launcher instance with its lock, runtime directory and client-disconnect flags."""
    launch_id = f"{os.getpid()}_{secrets.token_hex(4)}"
    unlocked = directory / f".{PREFIX}{launch_id}"
    lock = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    unlocked.rename(_lock_file(launch_id, directory))
    _folder(launch_id, directory).mkdir(mode=0o700)
    launch = Launch(launch_id, lock, directory)
    Departures.create(launch.departures_file)
    return launch


def _lock_file(launch_id: str, directory: Path) -> Path:
    return directory / f"{PREFIX}{launch_id}.lock"


def _folder(launch_id: str, directory: Path) -> Path:
    return directory / f"{PREFIX}{launch_id}.run"


def sweep(directory: Path = SHARED_MEMORY) -> list[str]:
    """Clean up after dead launcher instances and return their ids."""
    swept = []
    for path in directory.glob(f"{PREFIX}*.lock"):
        launch_id = path.name.removeprefix(PREFIX).removesuffix(".lock")
        if not IDS.fullmatch(launch_id):
            continue
        with suppress(OSError):  # removed, locked, or owned by another user
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid != os.geteuid():
                    continue
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_launch(launch_id, directory)
                shutil.rmtree(_folder(launch_id, directory), ignore_errors=True)
                path.unlink()
                swept.append(launch_id)
            finally:
                os.close(descriptor)
    return swept


def _remove_launch(launch_id: str, directory: Path) -> None:
    me = os.getpid()
    processes.end_all(lambda each: each.pid != me and processes.environment_of(each.pid, LAUNCH_ID) == launch_id)
    for path in directory.glob(f"{PREFIX}{launch_id}_*"):
        with suppress(OSError):  # a file created by another user must not end the launcher
            path.unlink()


if __name__ == "__main__":  # the argument is the pid of the ending launcher, this process's parent
    while os.getppid() == int(sys.argv[1]):
        time.sleep(0.01)
    sweep()
