"""A thread that waits forever is distinguished from a delayed one, on any machine."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue

import pytest

from stretto.config import DecoderConfig
from stretto.decoder.worker import DecoderWorker
from stretto.triton_io import stub
from stretto.triton_io.stub import NUM_CHECKS, HangWatch
from tests.decoder.test_worker import pile_up
from tests.fakes import FakeCodec
from tests.patience import PATIENCE_S, until
from tests.tiers import by_night

Change = Callable[["Machine", int], None]


class Machine:
    """Fake /proc of process 7, whose thread 8 has work and whose child is 9, and process 5, for which they may wait."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for pid, tid in ((7, 7), (7, 8), (9, 9), (5, 5)):
            (folder / f"{pid}/task/{tid}").mkdir(parents=True)
            self.be(pid, tid, "S")
            self.use(pid, tid, 100)
        (folder / "7/task/7/children").write_text("9 ")

    def be(self, pid: int, tid: int, state: str) -> None:
        (self.folder / f"{pid}/task/{tid}/stat").write_text(f"{tid} (a (name) R) {state} 1 1")

    def use(self, pid: int, tid: int, nanoseconds: int) -> None:
        (self.folder / f"{pid}/task/{tid}/schedstat").write_text(f"{nanoseconds} 5 3\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def checks_until_it_hangs(machine: Machine, change: Change = lambda *_: None, most: int = 4 * NUM_CHECKS) -> int | None:
    watch = HangWatch(lambda: True, [(7, 8)], [5], machine.folder)
    for check in range(most):
        change(machine, check)
        if watch.poll():
            return check
    return None


def test_idle_thread_is_not_a_hang(machine: Machine) -> None:
    watch = HangWatch(lambda: False, [(7, 8)], [5], machine.folder)
    assert not any(watch.poll() for _ in range(4 * NUM_CHECKS))


@pytest.mark.parametrize("who", [(7, 8), (7, 7), (9, 9), (5, 5)])
def test_starved_or_stopped_thread_is_not_a_hang(machine: Machine, who: tuple[int, int]) -> None:
    for state in "RDTt":
        machine.be(*who, state)
        assert checks_until_it_hangs(machine) is None


CHANGES: dict[str, tuple[Change, int | None]] = {
    "none": (lambda *_: None, NUM_CHECKS),
    "another thread runs rarely": (
        lambda machine, check: machine.be(9, 9, "S" if check % 4 else "R"),
        NUM_CHECKS,
    ),
    "another thread runs often": (lambda machine, check: machine.be(9, 9, "S" if check % 2 else "R"), None),
    "all wait for a CPU": (lambda machine, check: machine.be(9, 9, "S" if check < NUM_CHECKS // 2 else "R"), None),
    "it uses a CPU now and then": (lambda machine, check: machine.use(7, 8, 100 + check // (NUM_CHECKS // 2)), None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_thread_with_work_but_no_cpu_time_is_a_hang(machine: Machine, name: str) -> None:
    change, found = CHANGES[name]
    assert checks_until_it_hangs(machine, change) == found


def test_hang_requires_all_watched_threads_to_hang(machine: Machine) -> None:
    watch = HangWatch(lambda: True, [(7, 8), (9, 9)], (), machine.folder)
    for check in range(4 * NUM_CHECKS):
        machine.use(9, 9, check)
        assert not watch.poll()
    assert any(watch.poll() for _ in range(2 * NUM_CHECKS))


@pytest.mark.parametrize("missing", ["schedstat", ""])
def test_missing_proc_information_reports_no_hang(machine: Machine, missing: str) -> None:
    place = machine.folder / "7/task/8"
    for file in place.iterdir():
        if not missing or file.name == missing:
            file.unlink()
    if not missing:
        place.rmdir()
    assert checks_until_it_hangs(machine) is None


WAITS = "import threading; print(flush=True); threading.Event().wait()"
WORKS = "print(flush=True)\nwhile True: sum(range(1000))"
POLLS = "import time; print(flush=True)\nwhile True: time.sleep(0.001)"
HAS_A_CHILD_THAT_WORKS = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WORKS!r}])"


@pytest.fixture
def started(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in its own session that runs the parameter's program and ends with the test."""
    process = subprocess.Popen([sys.executable, "-c", request.param], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.read(1)
    yield process
    os.killpg(process.pid, 9)
    process.wait(PATIENCE_S)


@pytest.mark.parametrize("started", [WAITS], indirect=True)
def test_hang_watch_finds_a_thread_blocked_forever(started: subprocess.Popen[bytes]) -> None:
    watch = HangWatch(lambda: True, [(started.pid, started.pid)])
    until(lambda: watch.poll())


@pytest.mark.parametrize("started", [POLLS, *by_night(WORKS, HAS_A_CHILD_THAT_WORKS)], indirect=True)
def test_hang_watch_ignores_working_or_polling_threads(started: subprocess.Popen[bytes]) -> None:
    watch = HangWatch(lambda: True, [(started.pid, started.pid)])
    for _ in range(3 * NUM_CHECKS):
        assert not watch.poll()
        time.sleep(0.01)


def test_hang_watch_detects_a_stuck_codec_but_not_an_idle_one() -> None:
    codec = FakeCodec(poison=7)
    worker = DecoderWorker(codec, DecoderConfig(stop_timeout_s=5))
    worker.wait_until_warm()
    watch = HangWatch(worker.has_work, [(os.getpid(), worker.thread_id)])
    assert not any(watch.poll() for _ in range(2 * NUM_CHECKS))
    pile_up(worker, codec)
    until(watch.poll)
    codec.gate.set()
    worker.stop()


def test_hang_watch_ends_the_process(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: Queue[str] = Queue()
    monkeypatch.setattr("stretto.triton_io.stub.end", ended.put)
    monkeypatch.setattr(stub, "CHECK_INTERVAL_S", 0.001)
    watch = HangWatch(lambda: True, [(7, 8)], [5], machine.folder)
    watch.start("the engine")
    assert ended.get(timeout=PATIENCE_S) == "the engine hangs"
    watch.stop()
    assert not watch.poll()
