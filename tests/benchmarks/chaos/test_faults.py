"""Faults hit their target and end by themselves; faults that cannot be injected are listed as skipped."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos import __main__ as chaos
from benchmarks.chaos import faults
from benchmarks.chaos.faults import Fill, Kill, clock_environment, fill

LAUNCH: Any = None
WAIT_S = 3600  # wall-clock time; longer than any wait here
AFTER_SO_LONG = f"""
import ctypes, os, time

libc = ctypes.CDLL(None, use_errno=True)
moment = (ctypes.c_long * 2)(int(time.time()) + {WAIT_S}, 0)
print("waits", flush=True)
semaphore = ctypes.create_string_buffer(64)
libc.sem_init(semaphore, 0, 0)
libc.sem_timedwait(semaphore, moment)
print(os.strerror(ctypes.get_errno()))
"""


@pytest.fixture
def victim(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    monkeypatch.setattr(faults, "served_processes", lambda *_: {"engine": process.pid})
    monkeypatch.setattr(chaos, "served_processes", lambda *_: {"engine": process.pid})
    yield process
    process.kill()
    process.wait()


def test_kill_fault_kills_the_process(victim: subprocess.Popen[bytes]) -> None:
    asyncio.run(Kill("engine").strike(LAUNCH))
    assert victim.wait() == -signal.SIGKILL


def test_fill_fault_uses_and_releases_all_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = os.statvfs_result((512, 512, 100, 8, 8, 0, 0, 0, 0, 255))
    monkeypatch.setattr(faults.os, "statvfs", lambda _: room)
    with (tmp_path / "filled").open("wb") as file:
        fill(file.fileno(), tmp_path)
        assert os.fstat(file.fileno()).st_size == 8 * 512
    (tmp_path / "filled").unlink()
    asyncio.run(Fill(tmp_path, seconds=0.0).strike(LAUNCH))
    assert list(tmp_path.iterdir()) == []


def test_timed_wait_ends_when_the_shifted_clock_reaches_its_deadline(tmp_path: Path) -> None:
    environment = clock_environment(tmp_path)
    if not environment:
        pytest.skip("no C compiler")
    command = [sys.executable, "-c", AFTER_SO_LONG]
    with subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True) as waiter:
        assert waiter.stdout is not None
        try:
            assert waiter.stdout.readline() == "waits\n"
            faults.set_clock(tmp_path, WAIT_S + 1.0)  # while it waits, as far as the test can know
            assert waiter.communicate(timeout=WAIT_S / 10)[0] == f"{os.strerror(errno.ETIMEDOUT)}\n"
        finally:
            waiter.kill()
