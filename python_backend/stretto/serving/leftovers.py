"""What a dead server leaves behind: processes that outlive it, and files in shared memory.

Everything that a launch makes carries its id: shared-memory files in their name, processes in their environment.
A launch holds a lock as long as it lives, so the ids whose lock is free belong to the dead, even where pids of
other containers cannot be seen.
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
LAUNCH_ID = "STRETTO_LAUNCH_ID"  # in the environment of its processes
IDS = re.compile(r"[0-9]+_[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Launch:
    """The identity of one launcher, alive as long as it holds the lock."""

    id: str
    lock: int
    directory: Path

    @property
    def region_prefix(self) -> str:
        """Prefix of the names of the server's shared-memory regions."""
        return f"{PREFIX}{self.id}_"

    @property
    def folder(self) -> Path:
        """What the launch alone has, as sockets and the key, for this user alone; it stays over restarts."""
        return _folder(self.id, self.directory)

    @property
    def http_socket(self) -> Path:
        """Where Triton's HTTP service listens."""
        return self.folder / "http"

    @property
    def metrics_socket(self) -> Path:
        """Where Triton's page of metrics is."""
        return self.folder / "metrics"

    @property
    def grpc_socket(self) -> Path:
        """Where Triton's gRPC service listens, which adds a colon and its port to this name."""
        return self.folder / "grpc"

    @property
    def drain_file(self) -> Path:
        """A file that, while it exists, tells the preprocessor to take no more requests; nobody else can make it."""
        return self.folder / "draining"

    @property
    def departures_file(self) -> Path:
        """Where the proxy tells the models of clients that have left; nobody else can."""
        return self.folder / "departures"

    def hide_regions(self) -> None:
        """Have nobody else read the shared memory that Triton makes for all to read: text and speech pass there."""
        for path in self.directory.glob(f"{self.region_prefix}*"):
            with suppress(OSError):  # it is gone, or another user's
                descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    found = os.fstat(descriptor)
                    if (found.st_uid, found.st_nlink) == (os.geteuid(), 1):
                        os.fchmod(descriptor, 0o600)
                finally:
                    os.close(descriptor)

    def free_dead_locks(self) -> None:
        """Free what dead stubs have left locked in the server's shared memory: it would end where it finds that."""
        for path in self.directory.glob(f"{self.region_prefix}*"):
            with suppress(OSError):  # it is gone, or another user's
                free_dead_locks(path)

    def clean(self) -> None:
        """End the processes and remove the shared memory of this launch's server, which has ended."""
        _remove_launch(self.id, self.directory)
        remove_stale_tables(self.directory)
        for path in self.folder.iterdir():
            if path.is_socket():
                path.unlink()

    def close(self) -> None:
        """Clean up and give up the lock: the end of the launcher."""
        self.clean()
        shutil.rmtree(self.folder)
        _lock_file(self.id, self.directory).unlink(missing_ok=True)
        os.close(self.lock)


def begin_launch(directory: Path = SHARED_MEMORY) -> Launch:
    """A new launch."""
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
    """Clean up after launches that died; returns their ids."""
    swept = []
    for path in directory.glob(f"{PREFIX}*.lock"):
        launch_id = path.name.removeprefix(PREFIX).removesuffix(".lock")
        if not IDS.fullmatch(launch_id):
            continue
        with suppress(OSError):  # it is gone, held, or another user's
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
        with suppress(OSError):  # one that another user has put there ends no launcher
            path.unlink()


if __name__ == "__main__":  # of a child of a launcher that is about to end, whose pid is the argument
    while os.getppid() == int(sys.argv[1]):
        time.sleep(0.01)
    sweep()
