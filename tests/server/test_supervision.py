"""The server loses a stub, and is told to stop. These tests come last: they restart the server that all share."""

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from stretto.serving.processes import descendants, read_process

from tests.server.conftest import Server, idle_s

pytestmark = pytest.mark.server

LONG = "the river and the green garden and the window and the morning and the door"


def stub_of(server: Server, model: str) -> int:
    (pid,) = [
        process.pid
        for process in descendants(server.pid)
        if process.name.startswith("triton_python_b") and f"/{model}/" in process.command
    ]
    return pid


def test_a_killed_decoder_ends_every_stream_with_an_error_and_the_server_comes_back(server: Server) -> None:
    old = server.pid
    children = [process.pid for process in descendants(old)]
    num_starts = server.said.count("ready after")
    streams = [server.stream({"seed": i}, text=LONG) for i in range(8)]
    streams[0].next()
    os.kill(stub_of(server, "acoustic_decoder"), signal.SIGKILL)
    killed = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda stream: stream.listen(), streams))
    assert time.monotonic() - killed < idle_s(15)
    assert any(answer.error is not None for answer in answers)
    assert all(answer.error is not None or answer.events[-1]["is_final"] for answer in answers)
    server.until(lambda: server.state() != "ready" or server.said.count("ready after") > num_starts)
    server.until_ready()
    assert server.ask({"seed": 1, "max_audio_s": 1.0}, text=LONG).error is None
    assert server.pid != old
    assert all(read_process(pid) is None for pid in [old, *children])
    assert list(Path("/dev/shm").glob(f"stretto_flow_{old}_*")) == []


def test_a_stopping_server_finishes_what_runs_and_refuses_what_comes(server: Server) -> None:
    pid, launch = server.pid, server.launcher
    for _ in range(3):
        leaving = server.stream({"seed": 2}, text=LONG)
        leaving.next()
        leaving.cancel()
    running = server.stream({"seed": 1}, text=LONG)
    running.next()
    launch.send_signal(signal.SIGTERM)
    while server.state() == "ready":
        time.sleep(0.005)
    refused = server.ask({"seed": 2}, text="hello")
    answer = running.listen()
    assert answer.error is None
    assert answer.events[-1]["is_final"]
    assert refused.error == "in ensemble 'speech', unavailable: server is draining"
    assert launch.wait(120) == 0
    assert "drained" in server.said
    assert 'in-flight inferences"' in server.log  # Triton has counted, and found that
    assert not re.search(r"has [1-9]\d* in-flight inferences", server.log)  # cancelled requests are let go of, too
    assert list(Path("/dev/shm").glob(f"stretto_launch_{launch.pid}_*")) == []
    assert list(Path("/dev/shm").glob(f"stretto_flow_{pid}_*")) == []
    assert not server.pid_file.exists()
