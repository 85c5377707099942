"""Loss of a stub, and shutdown. These tests run last because they restart the shared server."""

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stretto.launcher.processes import descendants, read_process
from tests.patience import PATIENCE_S
from tests.server.conftest import Server

pytestmark = pytest.mark.server

LONG = "the river and the green garden and the window and the morning and the door"
ENDLESS = {"max_audio_s": 9.6, "audio": {"min_rows": 239}}

MODELS = ("preprocessor", "language_model", "acoustic_decoder")
AGAIN = "a process of the server has ended and is being restarted; try again"


def stub_of(server: Server, model: str) -> int:
    (pid,) = [process.pid for process in descendants(server.pid) if process.model == model]
    return pid


def engine_of(server: Server) -> int:
    (pid,) = [process.pid for process in descendants(server.pid) if process.command.startswith("VLLM::EngineCore")]
    return pid


def kill(server: Server, pid: int) -> None:
    """Kill a process, and wait until the launcher has handled it."""
    num_ready = server.said.count("ready after")
    os.kill(pid, signal.SIGKILL)
    server.until(lambda: server.said.count("ready after") > num_ready)
    server.until_ready()


def restarted(server: Server, model: str, old: int, num_said: int) -> set[str]:
    """Return the models that were restarted after `model` had been killed: all of them if Triton aborted.

    WORKAROUND(triton python_backend r24.10): the server aborts if it locks a mutex whose owner was killed before the
    launcher has freed it (`free_dead_locks`); then all of it is started again, and nothing else may be the reason.

    Args:
        server: The server.
        model: The model.
        old: Pid of Triton before.
        num_said: Length of the log before.
    """
    said = server.said[num_said:]
    has_aborted = "the server ended with signal SIGABRT: what():  boost::interprocess::lock_exception" in said
    assert (server.pid == old) is not has_aborted, said
    return set(MODELS) if has_aborted else {model}


def test_killed_decoder_fails_all_streams_and_restarts_alone(server: Server) -> None:
    old, stubs, num_said = server.pid, {model: stub_of(server, model) for model in MODELS}, len(server.said)
    streams = [server.stream(ENDLESS | {"seed": i}, text=LONG) for i in range(8)]
    streams[0].next()
    with ThreadPoolExecutor(9) as pool:
        answers = [pool.submit(stream.listen) for stream in streams]
        kill(server, stubs["acoustic_decoder"])
        errors = [answer.result(PATIENCE_S).error for answer in answers]
    assert all(error is None or "unavailable: " in error for error in errors), errors
    assert any(error is not None and AGAIN in error for error in errors), errors
    expected = restarted(server, "acoustic_decoder", old, num_said)
    now = {model: stub_of(server, model) for model in MODELS}
    assert {model for model in MODELS if now[model] != stubs[model]} == expected
    assert server.ask({"seed": 1, "max_audio_s": 1.0}, text=LONG).error is None
    server.until(lambda: server.metric("active_utterances") == 0)  # including those that the dead decoder has left


@pytest.mark.nightly
@pytest.mark.parametrize("victim", ["language_model", "its engine"])
def test_killed_language_model_or_engine_restarts_alone(server: Server, victim: str) -> None:
    old, stubs, engine = server.pid, {model: stub_of(server, model) for model in MODELS}, engine_of(server)
    stream, num_said = server.stream({"seed": 1}, text=LONG), len(server.said)
    stream.next()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(stream.listen)
        kill(server, engine if victim == "its engine" else stubs[victim])
        error = answer.result(PATIENCE_S).error
    assert error is None or "unavailable: " in error or "internal error" in error
    expected = restarted(server, "language_model", old, num_said)
    now = {model: stub_of(server, model) for model in MODELS}
    assert {model for model in MODELS if now[model] != stubs[model]} == expected
    assert engine_of(server) != engine
    assert read_process(engine) is None
    assert server.ask({"seed": 1, "max_audio_s": 1.0}, text=LONG).error is None
    assert len(list(Path("/dev/shm").glob(f"stretto_flow_{server.pid}_*"))) == 1


@pytest.mark.nightly
def test_killed_preprocessor_restarts_without_ending_streams(server: Server) -> None:
    old, stubs = server.pid, {model: stub_of(server, model) for model in MODELS}
    streams = [server.stream({"seed": i}, text=LONG) for i in range(4)]
    for stream in streams:
        stream.next()
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(stream.listen) for stream in streams]
        kill(server, stubs["preprocessor"])
        assert [answer.result(PATIENCE_S).error for answer in answers] == [None] * 4
    assert server.pid == old
    now = {model: stub_of(server, model) for model in MODELS}
    assert {model for model in MODELS if now[model] != stubs[model]} == {"preprocessor"}
    assert server.ask({"seed": 1, "max_audio_s": 1.0}, text=LONG).error is None


@pytest.mark.nightly
def test_stub_timed_out_while_stopped_does_not_fail_later_requests(server: Server) -> None:
    stub = stub_of(server, "preprocessor")
    num_ready = server.said.count("ready after")
    with ThreadPoolExecutor(1) as pool:
        os.kill(stub, signal.SIGSTOP)
        answer = pool.submit(server.ask, {"seed": 1, "max_audio_s": 1.0}, text=LONG)
        error = answer.result(PATIENCE_S).error  # after a second without a sign of life
        os.kill(stub, signal.SIGCONT)
    assert error is not None
    assert AGAIN in error
    server.until(lambda: server.said.count("ready after") > num_ready)
    server.until_ready()
    assert server.ask({"seed": 1, "max_audio_s": 1.0}, text=LONG).error is None


@pytest.mark.nightly
def test_killed_server_restarts(server: Server) -> None:
    old = server.pid
    children = [process.pid for process in descendants(old)]
    kill(server, old)
    assert server.pid != old
    assert server.ask({"seed": 1, "max_audio_s": 1.0}, text=LONG).error is None
    assert all(read_process(pid) is None for pid in [old, *children])
    assert list(Path("/dev/shm").glob(f"stretto_flow_{old}_*")) == []


@pytest.mark.nightly
def test_stopping_server_finishes_running_streams_and_refuses_new(server: Server) -> None:
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
    assert launch.wait(PATIENCE_S) == 0
    assert "drained" in server.said
    assert 'in-flight inferences"' in server.log  # Triton has counted, and found that
    assert not re.search(r"has [1-9]\d* in-flight inferences", server.log)  # cancelled requests are let go of, too
    assert list(Path("/dev/shm").glob(f"stretto_launch_{launch.pid}_*")) == []
    assert list(Path("/dev/shm").glob(f"stretto_flow_{pid}_*")) == []
    assert not server.pid_file.exists()
