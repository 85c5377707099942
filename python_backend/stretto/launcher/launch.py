"""Launcher instance: its files in shared memory, and the cleanup after one that has ended."""

import fcntl
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from stretto.disconnects import Disconnects
from stretto.launcher import processes
from stretto.launcher.processes import ProcessSnapshot
from stretto.machine.worker_process import SPARE_NAME
from stretto.triton_io.flow import remove_stale_tables


@contextmanager
def own_region(path: Path) -> Iterator[int | None]:
    """Open a shared-memory file but no symbolic link; yield None for another user's, or one with several hard links."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        yield descriptor if (status.st_uid, status.st_nlink) == (os.geteuid(), 1) else None
    finally:
        os.close(descriptor)


SHARED_MEMORY = Path("/dev/shm")
PREFIX = "stretto_launch_"
LAUNCH_ID = "STRETTO_LAUNCH_ID"  # environment variable of all processes of a launcher instance
IDS = re.compile(r"[0-9]+_[0-9a-f]{8}")
PID_FILE_LINK = "pid_file"


@dataclass(frozen=True, slots=True)
class Launch:
    """Launcher instance: its id, lock, runtime directory and shared memory.

    Attributes:
        lock: Descriptor of the locked file, which shows that the launcher is alive.
    """

    id: str
    lock: int
    directory: Path

    @property
    def region_prefix(self) -> str:
        """Prefix of the names of the server's shared-memory files."""
        return f"{PREFIX}{self.id}_"

    @property
    def folder(self) -> Path:
        """Runtime directory with sockets, key and drain file, kept across server restarts, for this user only."""
        return _folder(self.id, self.directory)

    @property
    def http_socket(self) -> Path:
        return self.folder / "http"

    @property
    def metrics_socket(self) -> Path:
        return self.folder / "metrics"

    @property
    def grpc_socket(self) -> Path:
        """Path of the Unix socket of Triton's gRPC service, without the colon and port that Triton appends."""
        return self.folder / "grpc"

    @property
    def drain_file(self) -> Path:
        """File that, while it exists, makes the preprocessor refuse new requests."""
        return self.folder / "draining"

    @property
    def spare_socket(self) -> Path:
        """Unix socket of the spare process that forks engine hosts."""
        return self.folder / "spare"

    @property
    def gateway_spare_socket(self) -> Path:
        """Unix socket of the spare process that forks the gateway."""
        return self.folder / "gateway_spare"

    @property
    def pid_file_link(self) -> Path:
        """Link to the launcher's pid file, by which `stretto ps` finds it."""
        return self.folder / PID_FILE_LINK

    @property
    def work_folder(self) -> Path:
        """Empty folder in which processes start, so that they import no modules from the user's current folder."""
        return self.folder / "work"

    @property
    def disconnects_file(self) -> Path:
        """File of client-disconnect flags, which the proxy sets and the models read."""
        return self.folder / "disconnects"

    def regions(self) -> list[Path]:
        return list(self.directory.glob(f"{self.region_prefix}*"))

    def hide_regions(self) -> None:
        """Restrict access to the server's shared-memory files to this user, because Triton makes them readable for all.

        They contain text and audio of requests.
        """
        for path in self.regions():
            with suppress(OSError), own_region(path) as descriptor:  # removed, or owned by another user
                if descriptor is not None:
                    os.fchmod(descriptor, 0o600)

    def clean(self) -> None:
        """Kill remaining processes of a server that has ended, and remove its shared memory and sockets."""
        _remove_launch(self.id, self.directory)
        remove_stale_tables(self.directory)
        for path in self.folder.iterdir():
            if path == self.work_folder:
                continue
            if path.is_dir():  # created by an engine's client
                shutil.rmtree(path, ignore_errors=True)
            elif path.is_socket() and path not in (self.spare_socket, self.gateway_spare_socket):
                path.unlink()

    def close(self) -> None:
        """Clean up, remove the runtime directory, and release the lock."""
        self.clean()
        shutil.rmtree(self.folder)
        _lock_file(self.id, self.directory).unlink(missing_ok=True)
        os.close(self.lock)


def begin_launch(directory: Path = SHARED_MEMORY) -> Launch:
    """Create a launcher instance with its lock, runtime directory and client-disconnect flags in `directory`.

    If the directory is missing, read-only or full, raise OSError.
    """
    launch_id = f"{os.getpid()}_{secrets.token_hex(4)}"
    unlocked = directory / f".{PREFIX}{launch_id}"
    lock = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    unlocked.rename(_lock_file(launch_id, directory))
    launch = Launch(launch_id, lock, directory)
    try:
        launch.folder.mkdir(mode=0o700)
        launch.work_folder.mkdir()
        Disconnects.create(launch.disconnects_file)
    except OSError:
        shutil.rmtree(launch.folder, ignore_errors=True)
        _lock_file(launch_id, directory).unlink()
        os.close(lock)
        raise
    return launch


def _lock_file(launch_id: str, directory: Path) -> Path:
    return directory / f"{PREFIX}{launch_id}.lock"


def _folder(launch_id: str, directory: Path) -> Path:
    return directory / f"{PREFIX}{launch_id}.run"


def pid_files(directory: Path = SHARED_MEMORY) -> list[Path]:
    """Return the paths of the pid files of this user's launcher instances; some may have died."""
    paths = []
    for link in sorted(directory.glob(f"{PREFIX}*.run/{PID_FILE_LINK}")):
        with suppress(OSError):  # its launcher is ending, or it is not a link
            if link.lstat().st_uid == os.geteuid():
                paths.append(link.readlink())
    return paths


def sweep(directory: Path = SHARED_MEMORY) -> list[str]:
    """Clean up after launcher instances that have died, and return their ids."""
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

    def is_left(process: ProcessSnapshot) -> bool:
        is_spare = process.name == SPARE_NAME  # outlives servers, and exits with the launcher
        return process.pid != me and not is_spare and processes.environment_of(process.pid, LAUNCH_ID) == launch_id

    processes.end_all(is_left)
    for path in directory.glob(f"{PREFIX}{launch_id}_*"):
        with suppress(OSError):  # a file created by another user must not end the launcher
            path.unlink()


if __name__ == "__main__":  # the argument is the pid of the ending launcher, this process's parent
    while os.getppid() == int(sys.argv[1]):
        time.sleep(0.01)
    sweep()
