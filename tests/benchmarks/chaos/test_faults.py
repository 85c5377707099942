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
from benchmarks.chaos.__main__ import KINDS, faults_of
from benchmarks.chaos.faults import Fill, Kill, Stop, clock_environment, fill
from stretto.launcher.processes import is_stopped

LAUNCH: Any = None
WAIT_S = 3600  # wall-clock time; longer than any wait here
AFTER_SO_LONG = f"""
import ctypes, os, sys, time

FUTEX_WAIT_BITSET, PRIVATE, BY_DAY, ANY = 9, 128, 256, -1
libc, number = ctypes.CDLL(None, use_errno=True), {{"x86_64": 202, "aarch64": 98}}[os.uname().machine]
moment = (ctypes.c_long * 2)(int(time.time()) + {WAIT_S}, 0)
print("waits", flush=True)
if sys.argv[1] == "futex":
    operation, word = FUTEX_WAIT_BITSET | PRIVATE | BY_DAY, ctypes.c_int()
    libc.syscall(number, ctypes.byref(word), operation, 0, moment, None, ANY)
else:
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


def test_stop_fault_stops_and_resumes_the_process(victim: subprocess.Popen[bytes]) -> None:
    async def strike() -> None:
        striking = asyncio.create_task(Stop("engine", seconds=3600.0).strike(LAUNCH))
        while not is_stopped(victim.pid):
            await asyncio.sleep(0)
        striking.cancel()
        await asyncio.gather(striking, return_exceptions=True)

    asyncio.run(strike())
    assert victim.stdin is not None
    victim.communicate(b"\n")
    assert victim.returncode == 0


def test_every_process_kind_has_its_faults(victim: subprocess.Popen[bytes], tmp_path: Path) -> None:
    names = [fault.name for fault in faults_of(KINDS, tmp_path)]
    wanted = {"stop proxy for good", "stop stretto_gateway for good", "kill language_model with no room for logs"}
    assert wanted < set(names)
    assert len(names) == len(set(names))


def test_fill_fault_uses_and_releases_all_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = os.statvfs_result((512, 512, 100, 8, 8, 0, 0, 0, 0, 255))
    monkeypatch.setattr(faults.os, "statvfs", lambda _: room)
    with (tmp_path / "filled").open("wb") as file:
        fill(file.fileno(), tmp_path)
        assert os.fstat(file.fileno()).st_size == 8 * 512
    (tmp_path / "filled").unlink()
    asyncio.run(Fill(tmp_path, seconds=0.0).strike(LAUNCH))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wait", ["futex", "semaphore"])
def test_timed_wait_ends_when_the_shifted_clock_reaches_its_deadline(tmp_path: Path, wait: str) -> None:
    environment = clock_environment(tmp_path)
    if not environment:
        pytest.skip("no C compiler")
    command = [sys.executable, "-c", AFTER_SO_LONG, wait]
    with subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True) as waiter:
        assert waiter.stdout is not None
        try:
            assert waiter.stdout.readline() == "waits\n"
            faults.set_clock(tmp_path, WAIT_S + 1.0)  # while it waits, as far as the test can know
            assert waiter.communicate(timeout=WAIT_S / 10)[0] == f"{os.strerror(errno.ETIMEDOUT)}\n"
        finally:
            waiter.kill()
