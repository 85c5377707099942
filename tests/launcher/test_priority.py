"""Processes that load models have raised priority while they load, if permitted."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stretto.launcher import processes
from stretto.launcher.processes import GENTLE_RAISE, RAISE, LoadPriority, threads_of

PROGRAM = "import threading; threading.Thread(target=input).start(); print('begun', flush=True)"


class Nice:
    """Fake process priorities, so that no real ones are changed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of = dict[int, int]()
        self.may = True
        monkeypatch.setattr("os.getpriority", lambda _, pid: self.of.get(pid, 0))
        monkeypatch.setattr("os.setpriority", self.set)

    def set(self, _: int, pid: int, value: int) -> None:
        if not self.may:
            raise PermissionError
        self.of[pid] = value


@pytest.fixture
def nice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Nice:
    monkeypatch.setattr(processes, "CHECK_INTERVAL_S", 0.0)
    monkeypatch.setattr(LoadPriority, "_session_file", staticmethod(lambda session: tmp_path / "autogroup"))
    (tmp_path / "autogroup").write_text("/autogroup-7 nice 0\n")
    return Nice(monkeypatch)


@pytest.fixture
def hurry(nice: Nice, request: pytest.FixtureRequest) -> LoadPriority:
    return LoadPriority(os.getpid(), raise_by=getattr(request, "param", RAISE))


@pytest.fixture
def stub(hurry: LoadPriority, tmp_path: Path) -> Iterator[int]:
    """Start a process named like a stub, with two threads, after priorities have been raised."""
    (tmp_path / "triton_python_backend_stub").symlink_to(sys.executable)
    command = [tmp_path / "triton_python_backend_stub", "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


@pytest.mark.parametrize(("hurry", "raised"), [(RAISE, -15), (GENTLE_RAISE, -5)], indirect=["hurry"])
def test_stub_priority_is_raised_once_and_lowered_at_the_end(
    hurry: LoadPriority, raised: int, stub: int, nice: Nice, tmp_path: Path
) -> None:
    hurry.poll()
    hurry.poll()
    assert nice.of == {stub: raised}
    assert (tmp_path / "autogroup").read_text() == str(raised)
    threads = threads_of({stub})
    assert len(threads) == 2
    early = max(threads)
    nice.of = dict.fromkeys(threads - {early}, raised)  # as threads inherit it that are begun after the raise
    hurry.end()
    assert nice.of == dict.fromkeys(threads - {early}, 0)
    assert (tmp_path / "autogroup").read_text() == "0"


@pytest.mark.parametrize("inherited", [0, -15], ids=["started before the raise", "inherits it"])
def test_restarted_server_and_stubs_get_raised_priority(stub: int, nice: Nice, inherited: int) -> None:
    nice.of = {stub: inherited}
    hurry = LoadPriority(os.getpid(), is_new_server=True)
    hurry.poll()
    hurry.poll()
    raised = {os.getpid(): -15, stub: -15}
    assert nice.of.items() >= raised.items()  # stubs of a server fixture are children of this process, too
    nice.of = dict.fromkeys({os.getpid()} | threads_of({stub}), -15)
    hurry.end()
    assert nice.of[stub] == nice.of[os.getpid()] == 0


def test_clamped_priority_is_restored_exactly(nice: Nice) -> None:
    nice.of = {0: -15, os.getpid(): -15}
    hurry = LoadPriority(os.getpid(), is_new_server=True)
    hurry.poll()
    assert nice.of[os.getpid()] == -20
    hurry.end()
    assert nice.of[os.getpid()] == -15


def test_running_stub_keeps_its_priority(stub: int, nice: Nice) -> None:
    hurry = LoadPriority(os.getpid())
    hurry.poll()
    hurry.end()
    assert nice.of == {}


def test_session_of_an_engine_host_is_raised(hurry: LoadPriority, nice: Nice, tmp_path: Path) -> None:
    """The host is not a child of the server and has its own session; its name contains the pid of its stub."""
    LoadPriority._session_file = staticmethod(lambda session: tmp_path / f"autogroup-{session}")
    program = f"from ctypes import *; CDLL(None).prctl(15, b'host_of_{os.getpid()}'); print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], start_new_session=True, **pipes) as host:
        assert host.stdout is not None
        host.stdout.readline()
        file = tmp_path / f"autogroup-{host.pid}"
        file.write_text("/autogroup-8 nice 2\n")
        hurry.poll()
        assert (nice.of, file.read_text()) == ({host.pid: -15}, "-13")
        nice.of = dict.fromkeys(threads_of({host.pid}), -15)
        hurry.end()
        assert (nice.of[host.pid], file.read_text()) == (0, "2")
        host.kill()


def test_priority_is_unchanged_without_permission(hurry: LoadPriority, stub: int, nice: Nice, tmp_path: Path) -> None:
    nice.may = False
    hurry.poll()
    hurry.end()
    assert nice.of == {}
    assert (tmp_path / "autogroup").read_text() == "/autogroup-7 nice 0\n"
