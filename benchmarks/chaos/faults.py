"""What is done to a server: processes killed and stopped, memory and disk filled, the clock moved."""

import asyncio
import os
import shutil
import signal
import struct
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.process_watch import served_processes
from benchmarks.temporary_server import Launch
from stretto.launcher.processes import birth, read_process

LAUNCHER = "launcher"
SHARED_MEMORY = Path("/dev/shm")
STOPPED_S, FULL_S, JUMPED_S = 20.0, 10.0, 20.0
REPLACED_S = 200.0  # of a busy machine; a replacement takes seconds on an idle one
MAX_FILLED = 4 << 30  # bytes of a file system that may be filled: a larger one is others' too
CLOCK = Path(__file__).with_name("clock.c")


class Skipped(Exception):
    """A fault that cannot be made here; the message says why."""


class Ended(Exception):
    """A fault ended processes that it must not end; the message names them."""


class Fault(Protocol):
    """Something that happens to a server."""

    @property
    def name(self) -> str:
        """What it is called in the report."""
        ...

    async def strike(self, launch: Launch) -> None:
        """Do it, and undo what would last. Skipped where it cannot be done."""
        ...


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL of a process; a launcher that was killed is started again by whoever runs it, here by this."""

    process: str

    @property
    def name(self) -> str:
        """What it is called."""
        return f"kill {self.process}"

    async def strike(self, launch: Launch) -> None:
        """Kill it."""
        os.kill(find(self.process), signal.SIGKILL)
        if self.process == LAUNCHER:
            await asyncio.to_thread(launch.wait)
            await asyncio.to_thread(launch.start)


@dataclass(frozen=True, slots=True)
class Stop:
    """SIGSTOP of a process for a while."""

    process: str
    seconds: float = STOPPED_S

    @property
    def name(self) -> str:
        """What it is called."""
        return f"stop {self.process} for {self.seconds:g} s"

    async def strike(self, launch: Launch) -> None:
        """Stop it, and let it go on, if nobody has ended it meanwhile."""
        pid = find(self.process)
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class Replaced:
    """SIGSTOP of a front-end process, which nothing wakes again: the launcher has to replace it."""

    process: str
    limit_s: float = REPLACED_S

    @property
    def name(self) -> str:
        """Return its name in the report."""
        return f"stop {self.process} for good"

    async def strike(self, launch: Launch) -> None:
        """Stop it and return once it is gone, or after `limit_s`, when it is continued: it was not replaced."""
        pid = find(self.process)
        born = birth(pid)
        os.kill(pid, signal.SIGSTOP)
        until_s = time.monotonic() + self.limit_s
        while read_process(pid) is not None and birth(pid) == born:
            if time.monotonic() > until_s:
                os.kill(pid, signal.SIGCONT)
                raise TimeoutError(f"{self.process} (pid {pid}) was stopped for {self.limit_s:g} s and not replaced")
            await asyncio.sleep(0.1)


@dataclass(frozen=True, slots=True)
class FullDiskKill:
    """SIGKILL of a process whose log's disk is full; it stays full until the process runs again, or for `limit_s`."""

    folder: Path
    process: str
    limit_s: float = REPLACED_S

    @property
    def name(self) -> str:
        """Return its name in the report."""
        return f"kill {self.process} with no room for logs"

    async def strike(self, launch: Launch) -> None:
        """Fill the disk, kill the process, and give the room back once the server is ready again."""
        filling = asyncio.create_task(Fill(self.folder, self.limit_s).strike(launch))
        await asyncio.sleep(1.0)
        if filling.done():
            filling.result()
        os.kill(find(self.process), signal.SIGKILL)
        until_s = time.monotonic() + self.limit_s
        try:
            while await asyncio.to_thread(is_ready, launch.http):  # not noticed yet
                await asyncio.sleep(0.05)
            while not await asyncio.to_thread(is_ready, launch.http):
                if time.monotonic() > until_s:
                    raise TimeoutError(f"the server was not ready within {self.limit_s:g} s on a full disk")
                await asyncio.sleep(0.2)
        finally:
            filling.cancel()
            await asyncio.gather(filling, return_exceptions=True)


def is_ready(port: int) -> bool:
    """Return True if the server's HTTP port reports readiness."""
    with suppress(OSError), urllib.request.urlopen(f"http://localhost:{port}/v2/health/ready", timeout=6) as answer:
        return bool(answer.status == 200)
    return False


@dataclass(frozen=True, slots=True)
class Fill:
    """A file system without a free byte for a while; only one that is small enough to be this run's own."""

    folder: Path
    seconds: float = FULL_S

    @property
    def name(self) -> str:
        """What it is called."""
        return f"no room in {'shared memory' if self.folder == SHARED_MEMORY else 'the folder of logs'}"

    async def strike(self, launch: Launch) -> None:
        """Fill it again and again, and give the room back; raise Ended if a process of the server ended meanwhile."""
        before, found = served_processes(os.getpid()), os.statvfs(self.folder)
        size = found.f_blocks * found.f_frsize
        if size > MAX_FILLED:
            raise Skipped(f"{self.folder} has {size >> 20} MiB and may be others' too: use scripts/soak.sh")
        until_s = time.monotonic() + self.seconds
        with (self.folder / "filled").open("wb") as file:
            try:
                while time.monotonic() < until_s:
                    fill(file.fileno(), self.folder)
                    await asyncio.sleep(0.2)
            finally:
                (self.folder / "filled").unlink()
        if ended := [name for name, pid in before.items() if read_process(pid) is None]:
            raise Ended(f"it ended {', '.join(sorted(ended))}")


@dataclass(frozen=True, slots=True)
class Jump:
    """The server's clock, and no other's, moved by `seconds` and back again (`clock_environment`)."""

    seconds: float
    lasting_s: float = JUMPED_S

    @property
    def name(self) -> str:
        """What it is called."""
        return f"clock {self.seconds:+g} s"

    async def strike(self, launch: Launch) -> None:
        """Move it, and move it back."""
        if "LD_PRELOAD" not in launch.environment:
            raise Skipped("no C compiler for a clock of the server's own, and the machine's is everybody's")
        set_clock(launch.folder, self.seconds)
        await asyncio.sleep(self.lasting_s)
        set_clock(launch.folder, 0.0)


def find(name: str) -> int:
    """The pid of this process's server's process of that name; Skipped where it has none."""
    found = served_processes(os.getpid())
    if name not in found:
        raise Skipped(f"no such process; there are {', '.join(sorted(found))}")
    return found[name]


def fill(file: int, folder: Path) -> None:
    """Take all that is free in the file system of `folder` into an open file of it."""
    with suppress(OSError):  # somebody else was faster
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        if free > 0:
            os.posix_fallocate(file, os.fstat(file).st_size, free)


def clock_environment(folder: Path) -> Mapping[str, str]:
    """The environment of a server whose clock `set_clock` moves; empty where no C compiler is to be had for it."""
    compiler, library = shutil.which("cc"), folder / "clock.so"
    if compiler is None:
        return {}
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, CLOCK, "-ldl"], check=True)
    set_clock(folder, 0.0)
    return {"LD_PRELOAD": str(library), "STRETTO_CHAOS_CLOCK": str(folder / "clock")}


def set_clock(folder: Path, seconds: float) -> None:
    """Have it be so much later, from now on, to a server of `clock_environment`."""
    place = folder / "clock"
    with open(place, "r+b" if place.exists() else "wb") as file:  # the same file: servers have it mapped
        file.write(struct.pack("q", round(seconds)))
