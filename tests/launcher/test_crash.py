"""A server that has crashed but does not end."""

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from stretto.launcher.triton_24_10 import crash
from stretto.launcher.triton_24_10.crash import CrashWatch
from tests.patience import PATIENCE_S

# Once a line arrives, a thread is in a handler of SIGABRT that never returns; the others are like Triton's.
CRASHES = """
import signal, sys, threading, time
def hang():
    sys.stdin.readline()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGABRT})
    print("crashed", flush=True)
    time.sleep(600)
threading.Thread(target=hang, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
print("runs", flush=True)
time.sleep(600)
"""


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator["subprocess.Popen[str]"]:
    monkeypatch.setattr(crash, "CHECK_INTERVAL_S", 0.0)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", CRASHES], text=True, **pipes) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "runs\n"
        yield running
        running.kill()


def test_thread_stuck_in_a_crash_handler_is_seen_at_the_second_check(process: "subprocess.Popen[str]") -> None:
    watch = CrashWatch(process.pid)
    assert [watch.fault() for _ in range(3)] == [None] * 3
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "crashed\n"
    assert watch.fault() is None
    assert str(watch.fault()) == "tritonserver has crashed but does not exit"


def test_ended_process_is_not_a_crash(process: "subprocess.Popen[str]") -> None:
    watch = CrashWatch(process.pid)
    process.kill()
    process.wait(PATIENCE_S)
    assert [watch.fault() for _ in range(3)] == [None] * 3


def test_crash_checks_are_rate_limited(process: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    monkeypatch.setattr(crash, "blocks_by_thread", lambda pid, signals: looked.append(pid) or {1: len(looked) > 1})
    monkeypatch.setattr(crash, "CHECK_INTERVAL_S", 2.0)
    watch, now_s = CrashWatch(process.pid), time.monotonic()
    for later_s in (1.0, 3.0, 4.0, 5.5, 7.0, 8.0):
        monkeypatch.setattr(time, "monotonic", lambda at_s=now_s + later_s: at_s)
        fault = watch.fault()
    assert len(looked) == 3
    assert fault is not None


def test_threads_with_blocked_signals_are_not_a_crash(
    process: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([{1: False, 2: True}, {1: False, 2: True, 3: True}, {1: True, 2: True, 3: True}, {1: True, 3: True}])
    monkeypatch.setattr(crash, "blocks_by_thread", lambda pid, signals: next(looks))
    watch = CrashWatch(process.pid)
    assert [watch.fault() for _ in range(3)] == [None] * 3
    assert watch.fault() is not None
