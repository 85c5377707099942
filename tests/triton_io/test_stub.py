"""Settings that a stub makes for its process."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from stretto.launcher.installation import MALLOC
from stretto.triton_io.decoding_service import DecodingService
from stretto.triton_io.ring import RingWriters
from stretto.triton_io.stub import (
    MPS_PRIORITY,
    MPS_SHARE,
    SWITCH_INTERVAL_S,
    let_others_first,
    limit_gpu_share,
    switch_threads_often,
)
from tests.patience import PATIENCE_S, until
from tests.triton_io.sealing import SEAL

PROGRAM = """
import sys
from concurrent.futures import ThreadPoolExecutor

from stretto.triton_io.stub import give_back_large_memory

def private_kb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

def work(_):
    held = []
    for _ in range(12):
        held.append(bytes(bytearray(19_000_000)))
    return [bytearray(1000) for _ in range(100)]

if sys.argv[1] == "true":
    give_back_large_memory()
before = private_kb()
with ThreadPoolExecutor(2) as pool:
    kept = list(pool.map(work, range(4)))
print(private_kb() - before)
"""


@pytest.mark.nightly  # by day the opposite setting, of the models with tensors
@pytest.mark.slow
def test_memory_of_large_files_is_returned_to_the_system() -> None:
    grown = {}
    for gives_back in ("true", "false"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, gives_back], capture_output=True, text=True, check=True)
        grown[gives_back] = int(done.stdout)
    assert grown["true"] < 10_000 < grown["false"], grown


TENSORS = """
import resource, sys
from stretto.triton_io.stub import keep_large_memory

if sys.argv[1] == "true":
    keep_large_memory()
bytearray(12_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    bytearray(12_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
def test_tensor_memory_pages_are_reused() -> None:
    faults = {}
    for keeps in ("true", "false"):
        command = [sys.executable, "-c", TENSORS, keeps]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | MALLOC)
        faults[keeps] = int(done.stdout)
    assert 10 * faults["true"] < faults["false"], faults


DYING = """
import sys, time
from stretto.triton_io import stub
stub.start_thread("rings", lambda: sys.exit(3) if sys.argv[1] == "fails" else None)
time.sleep(0.5 if sys.argv[1] == "returns" else 60)
"""


@pytest.mark.parametrize(("way", "code"), [("fails", -signal.SIGKILL), ("returns", 0)])
def test_failed_essential_thread_kills_the_process(way: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", DYING, way], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == code
    assert ("its thread 'rings' has ended" in done.stderr) == (way == "fails")


class Broken:
    """Worker or lock whose attributes all raise."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_death_of_a_decoder_stub_thread_ends_the_stub(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr("stretto.triton_io.stub.end", ended.append)
    DecodingService(Broken(), SEAL)  # this thread reports the decoder's own end
    until(lambda: ended)
    assert ended == ["its thread 'metrics' has ended"]
    ended.clear()
    writers = RingWriters()
    writers._writers = Broken()
    writers._may_wait.set()
    until(lambda: ended)
    assert ended == ["its thread 'rings' has ended"]


def test_only_inherited_sockets_are_closed() -> None:
    reading, writing = os.pipe()
    ours, theirs = socket.socketpair()
    program = f"""
import os
from stretto.triton_io.stub import close_inherited_sockets
close_inherited_sockets()
os.write({writing}, b"a pipe stays")
os.read(0, 1)
"""
    command, passed = [sys.executable, "-c", program], (writing, theirs.fileno())
    with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=passed) as process, ours:
        theirs.close()
        os.close(writing)
        assert os.read(reading, 100) == b"a pipe stays"
        os.close(reading)
        ours.settimeout(PATIENCE_S)
        assert ours.recv(1) == b"", "its end is noticed while the process goes on"
        assert process.poll() is None
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize(
    ("choose", "name", "value"),
    [(let_others_first, MPS_PRIORITY, "1"), (partial(limit_gpu_share, 25), MPS_SHARE, "25")],
    ids=["low priority", "share"],
)
def test_settings_of_mps_are_made_unless_given(
    monkeypatch: pytest.MonkeyPatch, choose: Callable[[], None], name: str, value: str
) -> None:
    for given, used in (({}, value), ({name: "0"}, "0")):
        monkeypatch.setattr(os, "environ", dict(given))
        choose()
        assert os.environ[name] == used


def test_waiting_threads_get_the_interpreter_soon() -> None:
    before = sys.getswitchinterval()
    try:
        switch_threads_often()
        assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)
    finally:
        sys.setswitchinterval(before)


def test_loaded_objects_are_not_collected_again() -> None:
    script = (
        "import gc, stretto.triton_io.stub as stub; loaded = [[]]; stub.keep_loaded_objects(); "
        "print(gc.get_freeze_count() > 1000, any(tracked is loaded for tracked in gc.get_objects()))"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["True", "False"]
