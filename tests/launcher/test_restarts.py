"""Faults of a ready server: restarts of single models or of the whole server."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2

from stretto.proxy.apis import MODEL_INFER
from tests.launcher.launched import MAX_RESTARTS, PROOF, Launch, busy_table, hang
from tests.tiers import by_night

pytestmark = pytest.mark.slow


RELOAD = ["models/preprocessor/unload", "models/preprocessor/load", "index"]


def may_raise_priority() -> bool:
    program = "import os; os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) - 10)"
    return subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def test_a_dead_stub_restarts_the_server(launch: Launch) -> None:
    server = launch()
    server.until_ready()
    first = server.kill_stub()
    server.until_ready(2)
    assert f"triton_python_b (pid {first}) ended: restarting the server" in server.said
    assert server.stub != first


def test_full_log_disk_does_not_prevent_restarts(launch: Launch) -> None:
    server = launch(0, "--log-file", "/dev/full")
    server.until(lambda: server.state == "ready")
    server.kill_stub()
    server.until_ready(2)
    assert "lines are dropped until it can: No space left on device\n" in server.said


@pytest.mark.nightly  # by day test_once_ready_server_is_restarted_without_limit
def test_failed_start_reason_comes_from_that_start(launch: Launch, tmp_path: Path) -> None:
    server = launch(1)  # logs an error
    server.until(lambda: server.state == "ready")
    (tmp_path / "fails silently").touch()
    server.kill_stub()
    server.until(lambda: "the start failed: " in server.said)
    assert "the start failed: the server ended with exit code 1: no error message" in server.said


@pytest.mark.skipif(not may_raise_priority(), reason="this user may not raise a priority")
def test_restarted_server_has_higher_priority_until_ready(launch: Launch, tmp_path: Path) -> None:
    def niceness() -> int | None:
        try:
            return os.getpriority(os.PRIO_PROCESS, server.stub) - os.getpriority(os.PRIO_PROCESS, 0)
        except (ProcessLookupError, ValueError):
            return None  # none is running now

    server = launch()
    server.until_ready()
    assert niceness() == 0
    hang(tmp_path, -1, "waiting")
    server.kill_stub()
    highest = -20 - os.getpriority(os.PRIO_PROCESS, 0)  # the tests may run raised themselves
    server.until(lambda: niceness() == max(-15, highest))
    hang(tmp_path, 0)
    server.until_ready(2)
    assert niceness() == 0


def test_once_ready_server_is_restarted_without_limit(launch: Launch, tmp_path: Path) -> None:
    """Aborts, or a model that does not load, would have ended the launcher at its first start."""
    server = launch(0, "--start-attempts=1")
    server.until(lambda: server.state == "ready")
    (tmp_path / "fails").touch()
    server.kill_stub()
    server.until(lambda: server.said.count("the start failed: ") >= 2)
    assert server.state in ("waiting", "starting")
    (tmp_path / "aborts").write_text("2")
    (tmp_path / "fails").unlink()
    server.until_ready(2)
    assert server.said.count("start 1 of unlimited aborted: ") == 1
    assert server.said.count("start 2 of unlimited aborted: ") == 1
    assert server.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGKILL, *by_night(signal.SIGSTOP)])
def test_only_the_model_of_a_lost_stub_is_restarted(launch: Launch, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "reloads").touch()
    server = launch()
    server.until_ready()
    first = server.kill_stub(number)
    server.until_ready(2)
    assert f"triton_python_b (pid {first}) " in server.said
    assert ": restarting preprocessor\n" in server.said
    assert server.reloads == RELOAD
    assert server.num_starts == 1
    assert server.stub != first
    server.kill_stub()  # the new stub is watched, too
    server.until_ready(3)
    assert server.num_starts == 1


def test_many_model_restarts_restart_the_server(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MAX_RESTARTS, "2")
    (tmp_path / "reloads").touch()
    server = launch()
    for num_ready in range(1, 5):
        server.until_ready(num_ready)
        server.kill_stub()
    server.until_ready(5)
    assert server.reloads == RELOAD * 3, "twice for the first server, once for the second"
    assert server.num_starts == 2


def test_only_the_model_that_triton_reports_unhealthy_is_restarted(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "reloads").touch()
    (tmp_path / "gives up").touch()
    server = launch()
    server.until_ready()
    first = server.stub
    with grpc.insecure_channel(f"127.0.0.1:{server.ports[1]}") as channel:
        infer = channel.unary_unary(MODEL_INFER, service_pb2.ModelInferRequest.SerializeToString)
        with pytest.raises(grpc.RpcError, match="a process of the server has ended and is being restarted; try again"):
            infer(service_pb2.ModelInferRequest(model_name="speech"), wait_for_ready=True)
    server.until_ready(2)
    assert f"triton_python_b (pid {first}) is considered dead by Triton: restarting preprocessor\n" in server.said
    assert server.reloads == RELOAD
    assert server.num_starts == 1
    assert server.stub != first


def test_failed_model_reload_restarts_the_server(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "reloads").touch()
    (tmp_path / "refuses").touch()
    server = launch()
    server.until_ready()
    server.kill_stub()
    server.until_ready(2)
    assert "the models could not be restarted: models/preprocessor/load: " in server.said
    assert "the next start is in" not in server.said, "the model restart was delayed already"
    assert server.num_starts == 2


@pytest.mark.nightly  # by day test_a_dead_stub_restarts_the_server and test_resumed_stub_restores_readiness
def test_permanently_stopped_stub_restarts_the_server(launch: Launch) -> None:
    server = launch()
    server.until_ready()
    first = server.kill_stub(signal.SIGSTOP)
    reason = f"triton_python_b (pid {first}) is stopped"
    server.until(lambda: f"{reason}: restarting the server" in server.said)
    server.until_ready(2)
    assert server.stub != first


def test_requests_end_before_a_restart_because_of_the_clock(launch: Launch, tmp_path: Path) -> None:
    server = launch(0, "--drain-seconds=600")
    server.until_ready()
    table = busy_table(server.server_pid)
    (tmp_path / "set back by").write_text("3600")
    server.until(lambda: "will be restarted when its requests have ended" in server.said)
    assert server.state == "waiting"
    (drain_file,) = Path("/dev/shm").glob(f"*{server.launch_id}*/draining")
    assert "restarting the server" not in server.said
    table.remove()
    server.until(lambda: "the clock was set back by 3600 s: restarting the server" in server.said)
    server.until_ready(2)
    assert not drain_file.exists()


def test_resumed_stub_restores_readiness_without_restart(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROOF, "600")
    server = launch()
    server.until_ready()
    first = server.kill_stub(signal.SIGSTOP)
    server.until(lambda: server.state == "unready")
    os.kill(first, signal.SIGCONT)
    server.until(lambda: server.state == "ready")
    assert server.num_ready == 1
    assert server.stub == first
