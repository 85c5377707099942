"""Faults that a soak test injects: processes killed or stopped, memory or disk filled, the clock moved."""

import asyncio
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.harness import Launch, is_ready, served_processes
from stretto.launcher.processes import birth, read_process

LAUNCHER = "launcher"
SHARED_MEMORY = Path("/dev/shm")
STOPPED_S = 20.0
FULL_S = 10.0
JUMPED_S = 20.0
REPLACED_S = 200.0  # for a busy machine; a replacement takes seconds on an idle one
MAX_FILLED = 4 << 30  # largest file system to fill, in bytes; a larger one may be shared with others
CLOCK = Path(__file__).with_name("clock.c")


class Skipped(Exception):
    """Error for a fault that cannot be injected on this machine. The message gives the reason."""


class Ended(Exception):
    """Error for a fault that has ended processes that it should not affect. The message names them."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Fault to inject. `label` is the format string of its name in the report."""

    label: ClassVar[str] = ""

    @property
    def name(self) -> str:
        return self.label.format(self)

    async def strike(self, launch: Launch) -> None:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Kill(Fault):
    """SIGKILL of a process. If it is the launcher, this process starts it again, as a supervisor would."""

    label: ClassVar[str] = "kill {0.process}"
    process: str

    async def strike(self, launch: Launch) -> None:
        os.kill(find(self.process), signal.SIGKILL)
        if self.process == LAUNCHER:
            await asyncio.to_thread(launch.wait)
            await asyncio.to_thread(launch.start)


@dataclass(frozen=True, slots=True)
class Stop(Fault):
    """SIGSTOP of a process for some seconds."""

    label: ClassVar[str] = "stop {0.process} for {0.seconds:g} s"
    process: str
    seconds: float = STOPPED_S

    async def strike(self, launch: Launch) -> None:
        """Stop the process, and continue it later if it still exists."""
        pid = find(self.process)
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class Replaced(Fault):
    """SIGSTOP of a front-end process without SIGCONT. The launcher must replace the process."""

    label: ClassVar[str] = "stop {0.process} for good"
    process: str
    limit_s: float = REPLACED_S

    async def strike(self, launch: Launch) -> None:
        """Stop the process and wait until it is gone. After `limit_s`, continue it and raise TimeoutError."""
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
class FullDiskKill(Fault):
    """SIGKILL of a process while the disk with its log is full, until the server is ready or `limit_s` has passed."""

    label: ClassVar[str] = "kill {0.process} with no room for logs"
    folder: Path
    process: str
    limit_s: float = REPLACED_S

    async def strike(self, launch: Launch) -> None:
        """Fill the disk, kill the process, and free the disk once the server is ready again."""
        filling = asyncio.create_task(Fill(self.folder, self.limit_s).strike(launch))
        await asyncio.sleep(1.0)
        if filling.done():
            filling.result()
        os.kill(find(self.process), signal.SIGKILL)
        until_s = time.monotonic() + self.limit_s
        try:
            while await asyncio.to_thread(is_ready, launch.http):  # the server has not noticed the kill yet
                await asyncio.sleep(0.05)
            while not await asyncio.to_thread(is_ready, launch.http):
                if time.monotonic() > until_s:
                    raise TimeoutError(f"the server was not ready within {self.limit_s:g} s on a full disk")
                await asyncio.sleep(0.2)
        finally:
            filling.cancel()
            await asyncio.gather(filling, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Fill(Fault):
    """File system that is full for some seconds; skipped if it is so large that others may share it."""

    folder: Path
    seconds: float = FULL_S

    @property
    def name(self) -> str:
        return f"no room in {'shared memory' if self.folder == SHARED_MEMORY else 'the folder of logs'}"

    async def strike(self, launch: Launch) -> None:
        """Keep the file system full, then free it; raise Ended if a process of the server ended meanwhile."""
        before = served_processes()
        usage = os.statvfs(self.folder)
        size = usage.f_blocks * usage.f_frsize
        if size > MAX_FILLED:
            raise Skipped(f"{self.folder} has {size >> 20} MiB and may be shared: use scripts/soak.sh")
        until_s = time.monotonic() + self.seconds
        with (self.folder / "filled").open("wb") as file:
            try:
                fill(file.fileno(), self.folder)
                while time.monotonic() < until_s:
                    await asyncio.sleep(0.2)
                    fill(file.fileno(), self.folder)
            finally:
                (self.folder / "filled").unlink()
        if ended := [name for name, pid in before.items() if read_process(pid) is None]:
            raise Ended(f"it ended {', '.join(sorted(ended))}")


@dataclass(frozen=True, slots=True)
class Jump(Fault):
    """Step of the server's clock by `seconds`, and later back (`clock_environment`)."""

    label: ClassVar[str] = "clock {0.seconds:+g} s"
    seconds: float
    lasting_s: float = JUMPED_S

    async def strike(self, launch: Launch) -> None:
        if "LD_PRELOAD" not in launch.environment:
            raise Skipped("no C compiler to give the server its own clock")
        set_clock(launch.folder, self.seconds)
        await asyncio.sleep(self.lasting_s)
        set_clock(launch.folder, 0.0)


def find(name: str) -> int:
    """Return the pid of the server process called `name`; raise Skipped if there is none."""
    processes = served_processes()
    if name not in processes:
        raise Skipped(f"no such process; there are {', '.join(sorted(processes))}")
    return processes[name]


def fill(file: int, folder: Path) -> None:
    """Extend an open file in `folder` until its file system has no free space."""
    with suppress(OSError):  # another process has taken the space first
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        if free > 0:
            os.posix_fallocate(file, os.fstat(file).st_size, free)


def clock_environment(folder: Path) -> Mapping[str, str]:
    """Return the environment of a server whose clock `set_clock` can set; empty without a C compiler."""
    compiler = shutil.which("cc")
    library = folder / "clock.so"
    if compiler is None:
        return {}
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, CLOCK, "-ldl"], check=True)
    set_clock(folder, 0.0)
    return {"LD_PRELOAD": str(library), "STRETTO_CHAOS_CLOCK": str(folder / "clock")}


def set_clock(folder: Path, seconds: float) -> None:
    """Set the clock of a server in `clock_environment` `seconds` ahead of the real time."""
    path = folder / "clock"
    with open(path, "r+b" if path.exists() else "wb") as file:  # keep the file, which servers have mapped
        file.write(struct.pack("q", round(seconds)))
