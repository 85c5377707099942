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
from benchmarks.chaos.faults import (
    Ended,
    Fill,
    FullDiskKill,
    Jump,
    Kill,
    Replaced,
    Skipped,
    Stop,
    clock_environment,
    fill,
)
from benchmarks.harness import Launch
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


def test_replaced_fault_stops_the_front_end_until_its_replacement(victim: subprocess.Popen[bytes]) -> None:
    async def strike() -> None:
        striking = asyncio.create_task(Replaced("engine").strike(LAUNCH))
        while not is_stopped(victim.pid):
            await asyncio.sleep(0)
        victim.kill()  # as the launcher does
        victim.wait()
        await striking

    asyncio.run(strike())


def test_unreplaced_front_end_is_reported_and_resumed(victim: subprocess.Popen[bytes]) -> None:
    with pytest.raises(TimeoutError, match=rf"^engine \(pid {victim.pid}\) was stopped for 0 s and not replaced$"):
        asyncio.run(Replaced("engine", limit_s=0.0).strike(LAUNCH))
    victim.communicate(b"\n")
    assert victim.returncode == 0


def test_full_disk_kill_fault_keeps_the_disk_full_until_restart(
    victim: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = []
    states = iter([True, False, True])

    def is_ready(_: int) -> bool:
        filled.append((tmp_path / "filled").exists())
        return next(states)

    monkeypatch.setattr(faults.os, "statvfs", lambda _: os.statvfs_result((512, 512, 100, 0, 0, 0, 0, 0, 0, 255)))
    monkeypatch.setattr(faults, "is_ready", is_ready)
    launch = Launch(tmp_path, tmp_path)
    asyncio.run(FullDiskKill(tmp_path, "engine").strike(launch))
    assert victim.wait() == -signal.SIGKILL
    assert filled == [True] * 3
    assert list(tmp_path.iterdir()) == []


def test_only_processes_of_the_server_are_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = {None: {"launcher": 7, "resource tracker": 8, "proxy": 9}, 7: {"proxy": 9}}
    monkeypatch.setattr(chaos, "served_processes", lambda root=None: found[root])
    assert [fault.name for fault in faults_of(("kill",), tmp_path)] == ["kill proxy", "kill launcher"]


def test_every_process_kind_has_its_faults(victim: subprocess.Popen[bytes], tmp_path: Path) -> None:
    names = [fault.name for fault in faults_of(KINDS, tmp_path)]
    wanted = {"stop proxy for good", "stop stretto_gateway for good", "kill language_model with no room for logs"}
    assert wanted < set(names)
    assert len(names) == len(set(names))


def test_fault_on_a_missing_process_is_skipped(victim: subprocess.Popen[bytes]) -> None:
    with pytest.raises(Skipped, match="no such process; there are engine"):
        asyncio.run(Kill("proxy").strike(LAUNCH))


def test_fill_fault_is_skipped_on_a_shared_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "MAX_FILLED", 0)
    with pytest.raises(Skipped, match="may be shared"):
        asyncio.run(Fill(tmp_path).strike(LAUNCH))
    assert list(tmp_path.iterdir()) == []


def test_fill_fault_uses_and_releases_all_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = os.statvfs_result((512, 512, 100, 8, 8, 0, 0, 0, 0, 255))
    monkeypatch.setattr(faults.os, "statvfs", lambda _: room)
    with (tmp_path / "filled").open("wb") as file:
        fill(file.fileno(), tmp_path)
        assert os.fstat(file.fileno()).st_size == 8 * 512
    (tmp_path / "filled").unlink()
    asyncio.run(Fill(tmp_path, seconds=0.0).strike(LAUNCH))
    assert list(tmp_path.iterdir()) == []


def test_process_exit_during_full_disk_fault_is_reported(
    victim: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(file: int, folder: Path) -> None:
        victim.kill()
        victim.wait()

    monkeypatch.setattr(faults, "MAX_FILLED", 1 << 62)
    monkeypatch.setattr(faults, "fill", lambda file, folder: None)
    asyncio.run(Fill(tmp_path, seconds=0.0).strike(LAUNCH))
    monkeypatch.setattr(faults, "fill", end)
    with pytest.raises(Ended, match=r"^it ended engine$"):
        asyncio.run(Fill(tmp_path, seconds=0.0).strike(LAUNCH))
    assert list(tmp_path.iterdir()) == []


def test_clock_jump_affects_only_processes_started_for_it(tmp_path: Path) -> None:
    environment = clock_environment(tmp_path)
    launch = Launch(tmp_path, tmp_path, environment=environment)
    if not environment:
        with pytest.raises(Skipped, match="no C compiler"):
            asyncio.run(Jump(3600.0).strike(launch))
        return
    faults.set_clock(tmp_path, 7200.0)
    waits = "import threading, time; threading.Event().wait(0.001); time.sleep(0.001); print(time.time())"
    command = [sys.executable, "-c", waits]
    moved = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    here = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 7100 < float(moved.stdout) - float(here.stdout) < 7300
    asyncio.run(Jump(3600.0, lasting_s=0.0).strike(launch))
    assert (tmp_path / "clock").read_bytes() == bytes(8)


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
