"""Servers of this user that are running: how they are found, their memory and their requests."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stretto.launcher.options import RepositoryOptions, ServedModel
from stretto.launcher.running import RunningServer, memory_bytes, num_requests, running_servers
from tests.launcher.launched import Launch, Launched, busy_table
from tests.patience import PATIENCE_S

HOLD = """
import mmap, sys
size = int(sys.argv[2])
file = open(sys.argv[1], "r+b")
held = mmap.mmap(file.fileno(), size) if sys.argv[3] == "shared" else bytearray(b"x") * size
touched = sum(held[::4096]) if sys.argv[3] == "shared" else 0
print(flush=True)
sys.stdin.read()
"""
SIZE = 64 << 20


@contextmanager
def holders(path: Path, kind: str, number: int) -> Iterator[list[int]]:
    """Start processes that hold SIZE bytes each, and yield their pids."""
    path.write_bytes(bytes(SIZE))
    command = [sys.executable, "-S", "-c", HOLD, str(path), str(SIZE), kind]
    pipe = subprocess.PIPE
    running = [subprocess.Popen(command, stdin=pipe, stdout=pipe) for _ in range(number)]
    try:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.read(1), "the process has ended"
        yield [process.pid for process in running]
    finally:
        for process in running:
            process.communicate()


@pytest.mark.parametrize("kind", ["own", "shared"])
def test_shared_memory_of_processes_counts_once(tmp_path: Path, kind: str) -> None:
    with holders(tmp_path / "file", kind, 2) as pids:
        together, alone = memory_bytes(pids), memory_bytes(pids[:1])
    expected = 2 * SIZE if kind == "own" else SIZE
    assert expected <= together < expected + SIZE // 2
    assert alone < together
    assert memory_bytes(pids) == 0, "both have ended"


def found(server: Launched) -> RunningServer | None:
    return next((each for each in running_servers() if each.pid == server.process.pid), None)


@pytest.mark.slow
def test_running_server_is_found_with_its_model_memory_and_requests(launch: Launch, tmp_path: Path) -> None:
    """Its pid file is not in the state folder."""
    folder = tmp_path / "models"
    (folder / "speech").mkdir(parents=True)
    (folder / "speech" / "config.pbtxt").touch()
    RepositoryOptions(model=ServedModel("voice", "0123")).write(folder)
    server = launch(0, "--model-repository", str(folder))
    server.until_ready()
    running = found(server)
    assert running is not None
    assert (running.model, running.state, running.reason) == (ServedModel("voice", "0123"), "ready", "")
    assert running.ports["grpc"] == server.ports[1]
    assert running.pid_file == tmp_path / "serve.json"
    processes = running.processes()
    assert {"tritonserver", "triton_python_b"} <= {process.name for process in processes}
    assert memory_bytes(process.pid for process in processes) > 1 << 20
    assert num_requests(processes) == 0
    table = busy_table(server.server_pid)
    assert num_requests(processes) == 1
    table.remove()
    server.process.terminate()
    server.process.wait(PATIENCE_S)
    assert found(server) is None
