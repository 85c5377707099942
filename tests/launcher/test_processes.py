"""Process trees read from /proc, and notification when a process ends."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stretto.launcher.processes import (
    ProcessSnapshot,
    Watch,
    descendants,
    end_all,
    environment_of,
    lost_children,
    read_process,
    waits_for_a_child,
)
from tests.patience import until

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
PARENT = [sys.executable, "-c", f"import subprocess; subprocess.run({SLEEP!r})"]


def test_grandchildren_are_found() -> None:
    parent = subprocess.Popen(PARENT)
    until(lambda: descendants(parent.pid))
    (grandchild,) = descendants(parent.pid)
    assert parent.pid in {process.pid for process in descendants(os.getpid())}
    assert grandchild.pid in {process.pid for process in descendants(os.getpid())}
    end_all(lambda process: process.pid in (parent.pid, grandchild.pid))
    assert descendants(parent.pid) == []
    parent.wait()


TRACKED = """
import multiprocessing, time
lock = multiprocessing.get_context("spawn").Lock()
print(lock._semlock.name, flush=True)
time.sleep(60)
"""


def test_resource_trackers_are_left_to_clean_up() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", TRACKED], stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    name = process.stdout.readline().strip()
    semaphore = Path("/dev/shm", "sem." + name.lstrip("/"))
    assert semaphore.exists()
    end_all(lambda each: each.group == process.pid)
    process.wait()
    assert not semaphore.exists()


def test_process_watch_returns_at_the_first_exit() -> None:
    """Otherwise it would wait for a day."""
    first, second = subprocess.Popen(SLEEP), subprocess.Popen(SLEEP)
    watch = Watch([read_process(first.pid), read_process(second.pid)])
    assert watch.wait(0.01) == []
    second.kill()
    assert [process.pid for process in watch.wait(86_400)] == [second.pid]
    watch.close()
    first.kill()
    first.wait()
    second.wait()


def test_process_watch_reports_an_already_exited_process() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    gone = ProcessSnapshot(process.pid, 1, 1, "gone", "")
    assert Watch([gone]).wait(10) == [gone]


def test_process_environment_can_be_read() -> None:
    process = subprocess.Popen(SLEEP, env={"COLOUR": "green"})
    until(lambda: environment_of(process.pid, "COLOUR"))
    assert environment_of(process.pid, "COLOUR") == "green"
    assert environment_of(process.pid, "COLO") is None
    process.kill()
    process.wait()
    assert environment_of(process.pid, "COLOUR") is None


def test_waiting_for_a_child_is_distinguished_from_sleeping() -> None:
    parent = subprocess.Popen(PARENT)
    try:
        until(lambda: waits_for_a_child(parent.pid))
        (child,) = descendants(parent.pid)
        assert not waits_for_a_child(child.pid)
    finally:
        end_all(lambda process: process.pid == parent.pid or process.parent == parent.pid)
        parent.wait()
    assert not waits_for_a_child(parent.pid)


def test_unreaped_children_are_detected() -> None:
    child = subprocess.Popen(SLEEP)
    assert child.pid not in lost_children(os.getpid())
    child.kill()
    until(lambda: child.pid in lost_children(os.getpid()))
    child.wait()
    assert child.pid not in lost_children(os.getpid())


def test_stub_and_engine_processes_are_workers() -> None:
    assert ProcessSnapshot(1, 0, 1, "triton_python_b", "/x/triton_python_backend_stub model.py").is_worker
    assert ProcessSnapshot(1, 0, 1, "VLLM::EngineCor", "VLLM::EngineCore").is_worker
    assert ProcessSnapshot(1, 0, 1, "host_of_7", "python3 -m stretto.engine.host").is_worker
    assert not ProcessSnapshot(1, 0, 1, "python3", "python3 -c from multiprocessing.resource_tracker").is_worker


def test_parent_of_an_engine_host_is_its_stub(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "from ctypes import *; CDLL(None).prctl(15, b'host_of_4711'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        host.stdout.readline()
        found = read_process(host.pid)
        assert found is not None
        assert found.parent == 4711
        monkeypatch.setattr(os, "geteuid", lambda: -1)
        assert read_process(host.pid) == replace(found, parent=os.getpid()), "another user's process has any name"
        host.kill()


def stub(pid: int, parent: int, model: str) -> ProcessSnapshot:
    return ProcessSnapshot(
        pid, parent, 1, "triton_python_b", f"/b/triton_python_backend_stub /m/{model}/1/model.py region "
    )


def test_processes_belong_to_the_model_of_their_stub() -> None:
    running = [subprocess.Popen(SLEEP) for _ in range(4)]
    server, language, engine, decoder = (each.pid for each in running)
    watch = Watch(
        [
            ProcessSnapshot(server, os.getpid(), 1, "tritonserver", "tritonserver"),
            stub(language, server, "language_model"),
            ProcessSnapshot(engine, language, 1, "VLLM::EngineCor", "VLLM::EngineCore"),
            stub(decoder, server, "an acoustic decoder"),
        ]
    )
    found = {process.pid: process for process in watch._watched.values()}
    assert watch.models_of([found[engine]]) == {"language_model"}
    assert watch.models_of([found[engine], found[decoder]]) == {"language_model", "an acoustic decoder"}
    assert watch.models_of([found[server]]) is None
    assert watch.models_of([found[decoder], found[server]]) is None
    watch.end_models({"language_model"})
    assert [each.poll() is None for each in running] == [True, False, False, True]
    watch.close()
    for each in running:
        each.kill()
        each.wait()
