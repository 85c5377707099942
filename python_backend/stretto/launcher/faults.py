"""Faults of processes, missing heartbeats, and the launcher instance that is cleaned up afterwards."""

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
from stretto.heartbeat import BEATS, READY_BEAT
from stretto.launcher import processes
from stretto.launcher.processes import Process, is_stopped
from stretto.triton_io.flow import remove_stale_tables
from stretto.worker_process import SPARE_NAME

FIRST_DELAY_S, MAX_DELAY_S = 0.5, 30.0
HEALTHY_S = 60.0  # a server that was ready for this long resets the delay


def slowness() -> float:
    """Return the scale factor of timeouts: the load average per core, at least 1."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class BackOff:
    """Exponential back-off between restarts.

    The restart after the first failure has no delay. Later delays double from FIRST_DELAY_S up to MAX_DELAY_S, and
    start over once a server has been ready for HEALTHY_S.
    """

    def __init__(self) -> None:
        self._num_failed = 0
        self._ready_since: float | None = None
        self._has_waited = False

    def note_waited(self) -> None:
        """Record that the delay for the current failure has passed.

        The next call to `next_delay_s` returns 0.
        """
        self._has_waited = True

    def note_ready(self) -> None:
        """Record that the server is ready."""
        self._ready_since = time.monotonic()
        self._has_waited = False

    def next_delay_s(self) -> float:
        """Record a failure of the server or its start; return the delay before the next start, in seconds."""
        if self._has_waited:
            self._has_waited = False
            return 0.0
        if self._ready_since is not None and time.monotonic() - self._ready_since >= HEALTHY_S:
            self._num_failed = 0
        self._ready_since = None
        self._num_failed += 1
        return 0.0 if self._num_failed == 1 else min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self._num_failed - 2, 16))


@contextmanager
def own_region(path: Path) -> Iterator[int | None]:
    """Open a shared-memory file without following links.

    Yields:
        The file's descriptor, or None if the file belongs to another user or has several hard links.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        yield descriptor if (found.st_uid, found.st_nlink) == (os.geteuid(), 1) else None
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
        id: Unique id.
        lock: Descriptor of the locked file, which shows that the launcher is alive.
        directory: Shared-memory directory.
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
        """Runtime directory with sockets, key and drain file.

        It is accessible only to this user, and kept across server restarts.
        """
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
        """Path of the Unix socket of Triton's gRPC service, without the colon and port that Triton appends."""
        return self.folder / "grpc"

    @property
    def drain_file(self) -> Path:
        """File that, while it exists, makes the preprocessor refuse new requests."""
        return self.folder / "draining"

    @property
    def spare_socket(self) -> Path:
        """Unix socket of the spare process, which starts engines."""
        return self.folder / "spare"

    @property
    def pid_file_link(self) -> Path:
        """Link to the launcher's pid file, by which `stretto ps` finds it."""
        return self.folder / PID_FILE_LINK

    @property
    def disconnects_file(self) -> Path:
        """File of client-disconnect flags, which the proxy sets and the models read."""
        return self.folder / "disconnects"

    def regions(self) -> list[Path]:
        """Return the paths of the server's shared-memory files."""
        return list(self.directory.glob(f"{self.region_prefix}*"))

    def hide_regions(self) -> None:
        """Restrict access to the server's shared-memory files to this user.

        They contain text and audio of requests, and Triton creates them readable for all users.
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
            if path.is_dir():  # created by an engine's client
                shutil.rmtree(path, ignore_errors=True)
            elif path.is_socket() and path != self.spare_socket:
                path.unlink()

    def close(self) -> None:
        """Clean up, remove the runtime directory, and release the lock."""
        self.clean()
        shutil.rmtree(self.folder)
        _lock_file(self.id, self.directory).unlink(missing_ok=True)
        os.close(self.lock)


def begin_launch(directory: Path = SHARED_MEMORY) -> Launch:
    """Create a launcher instance with its lock, runtime directory and client-disconnect flags in `directory`.

    Raises:
        OSError: If the directory is missing, read-only or full.
    """
    launch_id = f"{os.getpid()}_{secrets.token_hex(4)}"
    unlocked = directory / f".{PREFIX}{launch_id}"
    lock = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    unlocked.rename(_lock_file(launch_id, directory))
    launch = Launch(launch_id, lock, directory)
    try:
        launch.folder.mkdir(mode=0o700)
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
    found = []
    for link in sorted(directory.glob(f"{PREFIX}*.run/{PID_FILE_LINK}")):
        with suppress(OSError):  # its launcher ends, or it is no link
            if link.lstat().st_uid == os.geteuid():
                found.append(link.readlink())
    return found


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

    def is_left(each: Process) -> bool:
        is_spare = each.name == SPARE_NAME  # outlives servers, and exits with the launcher
        return each.pid != me and not is_spare and processes.environment_of(each.pid, LAUNCH_ID) == launch_id

    processes.end_all(is_left)
    for path in directory.glob(f"{PREFIX}{launch_id}_*"):
        with suppress(OSError):  # a file created by another user must not end the launcher
            path.unlink()


if __name__ == "__main__":  # the argument is the pid of the ending launcher, this process's parent
    while os.getppid() == int(sys.argv[1]):
        time.sleep(0.01)
    sweep()


PROOF_S = 2.0  # a process that has been stopped for this long is not expected to resume by itself


@dataclass(frozen=True, slots=True)
class Fault:
    """Fault that makes a restart necessary.

    Attributes:
        processes: Faulty processes; empty if the fault concerns the whole server.
        description: Predicate of a sentence about these processes, such as "is stopped".
    """

    processes: list[Process]
    description: str

    def __str__(self) -> str:
        return f"{named(self.processes)} {self.description}".lstrip()


class PendingFault:
    """Suspected fault that may still clear.

    Attributes:
        reason: Description of the fault; empty if there is none.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._since = time.monotonic()

    def update(self, reason: str) -> bool:
        """Set the current fault, '' for none; return True if it differs from the previous one."""
        if reason == self.reason:
            return False
        self.reason, self._since = reason, time.monotonic()
        return True

    @property
    def is_proven(self) -> bool:
        """True if the same fault has lasted for PROOF_S."""
        return bool(self.reason) and time.monotonic() - self._since >= PROOF_S


def named(processes: list[Process]) -> str:
    """Return the names and pids of processes, for messages."""
    return ", ".join(f"{process.name} (pid {process.pid})" for process in processes)


POLL_S = 1.0
MAX_MISSED, MAX_MISSED_AT_START = 30, 120  # polls without a heartbeat
MAX_UNREADY = 5  # heartbeats without readiness, for example because the server was busy


class Pulse:
    """Health of a front-end process, judged by the heartbeats of its event loop and by /proc.

    Missed heartbeats are counted in polls, not in elapsed time. A launcher that was itself stopped therefore finds no
    fault, because the heartbeats sent in the meantime are still in the pipe.

    Attributes:
        writing: Write end of the heartbeat pipe; -1 once a process has inherited it.
        has_beaten: True once the process has sent a heartbeat.
        is_ready: True if one of the last MAX_UNREADY heartbeats has reported readiness.
    """

    def __init__(self, name: str) -> None:
        """Create the health record of the process that is called `name` in messages."""
        self._name, self._pid = name, 0
        self._num_starts = 0
        self._reading, self.writing = -1, -1
        self._pending = PendingFault()

    def prepare(self) -> dict[str, str]:
        """Create the pipe for the next process; return the environment variable for its write end."""
        self.close()
        self._reading, self.writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        return {BEATS: str(self.writing)}

    def begin(self, pid: int) -> None:
        """Watch the process `pid`, which has inherited the pipe."""
        os.close(self.writing)
        self._pid, self.writing = pid, -1
        self._num_starts += 1
        self._polled_s, self._num_missed, self.has_beaten = time.monotonic(), 0, False
        self._beats = b""
        self._pending = PendingFault()

    def fault(self) -> str:
        """Poll the process and return a description of its fault; empty if there is none."""
        self._poll()
        if is_stopped(self._pid):
            return f"the {self._name} (pid {self._pid}) is stopped"
        if self._num_missed >= (MAX_MISSED if self.has_beaten else MAX_MISSED_AT_START) * slowness():
            return f"the {self._name} (pid {self._pid}) does not answer"
        return f"the {self._name} is being restarted" if self._num_starts > 1 and not self.has_beaten else ""

    @property
    def is_ready(self) -> bool:
        return READY_BEAT in self._beats

    def is_hung(self) -> bool:
        """Return True if the process must be replaced: stopped for PROOF_S, or no heartbeat for too long."""
        fault = self.fault()
        self._pending.update(fault if fault.endswith("is stopped") else "")
        return self._pending.is_proven or fault.endswith("does not answer")

    def close(self) -> None:
        """Close the pipe."""
        for descriptor in (self._reading, self.writing):
            if descriptor >= 0:
                os.close(descriptor)
        self._reading = self.writing = -1

    def _poll(self) -> None:
        if time.monotonic() - self._polled_s >= POLL_S:
            self._polled_s = time.monotonic()
            self._num_missed += 1
        with suppress(BlockingIOError):
            if self._reading >= 0 and (came := os.read(self._reading, 4096)):
                self._num_missed, self.has_beaten = 0, True
                self._beats = (self._beats + came)[-MAX_UNREADY:]
