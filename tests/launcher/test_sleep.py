"""A launcher whose idle server sleeps: Triton is stopped, and started again for a request."""

import os
import signal
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from stretto.launcher import command
from stretto.launcher.background import read
from stretto.launcher.config import launch_config, parser
from stretto.launcher.installation import LaunchError
from stretto.launcher.processes import read_process
from tests.launcher.launched import Launch, Launched
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.slow
IDLE = "--idle-s=0.3"


def infer(server: Launched) -> None:
    """Send a request that the scripted server answers; it wakes a server that sleeps."""
    with grpc.insecure_channel(f"127.0.0.1:{server.ports[1]}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        stub.ModelInfer(service_pb2.ModelInferRequest(model_name="speech"), timeout=PATIENCE_S)


def until_asleep(server: Launched, times: int) -> None:
    server.until(lambda: server.said.count("the server sleeps") == times)
    server.until(lambda: server.state == "asleep" and read_process(server.server_pid) is None)


def reason(folder: Path) -> str:
    record = read(folder / "serve.json")
    assert record is not None
    return str(record.get("reason"))


def test_idle_server_sleeps_until_the_next_request(
    launch: Launch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "serves").touch()
    server = launch(0, IDLE)
    until_asleep(server, 1)
    assert not [process for process in server.processes() if process.name.startswith("triton")]
    assert command.status(tmp_path / "serve.json") == 0
    assert '"state": "asleep"' in capfd.readouterr().out
    infer(server)
    server.until_ready(2)
    until_asleep(server, 2)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0
    assert server.num_starts == 2
    assert server.leftovers() == []


def test_failed_start_for_a_request_is_not_repeated_before_the_next_one(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "serves").touch()
    server = launch(0, IDLE)
    until_asleep(server, 1)
    (tmp_path / "fails").touch()
    with pytest.raises(grpc.RpcError, match="the idle server could not start again, its log has the reason"):
        infer(server)
    server.until(lambda: server.state == "asleep")
    assert "failed to load 'language_model'" in reason(tmp_path)
    assert server.num_starts == 2
    (tmp_path / "aborts").write_text("1")  # a start that may succeed at the second attempt is repeated
    (tmp_path / "fails").unlink()
    infer(server)
    server.until_ready(2)
    assert server.num_starts == 4


@pytest.mark.nightly  # by day tests/proxy/test_sleep.py
def test_new_proxy_of_a_sleeping_server_wakes_it(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "serves").touch()
    server = launch(0, IDLE)
    until_asleep(server, 1)
    (proxy,) = server.proxies()
    os.kill(proxy, signal.SIGKILL)
    until_asleep(server, 2)
    assert server.num_starts == 2


def test_idle_time_and_tritons_own_http_exclude_each_other(tmp_path: Path) -> None:
    flags, passed = parser().parse_known_args([IDLE, "--allow=http", "--pid-file", str(tmp_path / "serve.json")])
    with pytest.raises(LaunchError, match="--idle-s: expected no --allow http"):
        launch_config(flags, passed)
