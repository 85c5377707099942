"""The launcher restarts proxy and gateway on the same ports while the server continues."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stretto.launcher import command as serve
from stretto.launcher import front_ends
from stretto.launcher.background import BackgroundServer
from stretto.launcher.config import launch_config, parser
from stretto.launcher.front_ends import ProxyProcess
from stretto.launcher.installation import LaunchError
from stretto.launcher.launch import LAUNCH_ID, begin_launch
from stretto.launcher.launch_log import LaunchLog
from stretto.launcher.processes import all_processes, descendants, environment_of, read_process
from stretto.machine.worker_process import GATEWAY_SPARE_NAME, SPARE_NAME
from stretto.proxy.messages import Ports
from tests.launcher.launched import Launch, Launched, answers
from tests.patience import PATIENCE_S, until
from tests.ports import free_ports

pytestmark = pytest.mark.slow


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """File that makes the scripted server answer over gRPC."""
    path = tmp_path / "serves"
    path.touch()
    return path


def test_a_dead_proxy_is_restarted_on_the_same_ports(launch: Launch, tmp_path: Path) -> None:
    server = launch(0, "--http-port=0", "--grpc-port=0", "--metrics-port=0")
    server.until_ready()
    ports = json.loads((tmp_path / "serve.json").read_text())["ports"]
    assert all(answers(port) for port in ports.values())
    assert Path(f"/dev/shm/stretto_launch_{server.launch_id}.run/key-{ports['grpc']}").exists()
    assert f"http {ports['http']}, grpc {ports['grpc']}, metrics {ports['metrics']}" in server.said
    (first,) = server.proxies()
    os.kill(first, signal.SIGKILL)
    server.until(lambda: server.proxies() not in ([], [first]))
    server.until(lambda: all(answers(port) for port in ports.values()))
    assert server.num_ready == 1
    server.process.kill()
    server.process.wait()
    server.until(lambda: not any(answers(port) for port in ports.values()))


def test_spare_process_outlives_the_server_but_not_the_launcher(launch: Launch) -> None:
    def spares() -> list[int]:
        names = [(each.pid, each.name, environment_of(each.pid, LAUNCH_ID)) for each in all_processes()]
        return [pid for pid, name, launch_id in names if (name, launch_id) == (SPARE_NAME, server.launch_id)]

    server = launch()
    server.until_ready()
    server.until(lambda: len(spares()) == 1)
    (first,) = spares()
    path = Path(f"/dev/shm/stretto_launch_{server.launch_id}.run/spare")
    os.kill(server.server_pid, signal.SIGKILL)
    server.until(lambda: server.num_ready == 2)
    assert spares() == [first]
    assert path.is_socket()
    os.kill(first, signal.SIGKILL)
    server.until(lambda: spares() not in ([], [first]) and path.is_socket())
    assert server.num_ready == 2
    server.process.kill()
    server.process.wait()
    server.until(lambda: not spares())


def test_proxy_restarts_once_its_port_is_free(launch: Launch) -> None:
    server = launch()
    server.until_ready()
    (first,) = server.proxies()
    os.kill(server.process.pid, signal.SIGSTOP)
    os.kill(first, signal.SIGKILL)
    server.until(lambda: not answers(server.ports[1]))
    with socket.create_server(("127.0.0.1", server.ports[1])):
        os.kill(server.process.pid, signal.SIGCONT)
        tried = set[int]()
        server.until(lambda: bool(tried.update(server.proxies()) or len(tried - {first}) > 1))
    server.until(lambda: answers(server.ports[1]))
    assert server.process.poll() is None
    assert server.num_ready == 1


def test_a_stopped_proxy_is_replaced(launch: Launch) -> None:
    server = launch()
    server.until_ready()
    (first,) = server.proxies()
    os.kill(first, signal.SIGSTOP)
    server.until(lambda: f"[serve] the proxy (pid {first}) is stopped\n" in server.said)
    server.until(lambda: server.proxies() not in ([], [first]))
    server.until(lambda: server.state == "ready" and answers(server.ports[1]))
    assert server.num_ready == 1, "the server has not been restarted"


def test_proxy_hanging_at_first_start_ends_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    start_of_a_program(monkeypatch, "import sys, time; sys.stdin.readline(); time.sleep(3600)")
    monkeypatch.setattr(front_ends, "START_S", 0.2)
    monkeypatch.setattr(front_ends, "slowness", lambda: 1.0)
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
    flags, passed = parser().parse_known_args([*ports, "--pid-file", str(tmp_path / "serve.json")])
    launch, log = begin_launch(), LaunchLog(tmp_path / "log")
    try:
        with pytest.raises(LaunchError, match=r"^the proxy did not listen within 0 s; see the log$"):
            ProxyProcess(launch_config(flags, passed), launch, log)
    finally:
        log.close()
        launch.close()


def test_hanging_proxy_restart_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = tmp_path / "says"
    says.write_text(Ports(1, 2, 3).to_json() + "\n")
    program = f"import sys, time; print(open({str(says)!r}).read(), end='', flush=True); time.sleep(3600)"
    start_of_a_program(monkeypatch, program)
    flags, passed = parser().parse_known_args(["--pid-file", str(tmp_path / "serve.json")])
    launch, log = begin_launch(), LaunchLog(tmp_path / "log")
    proxy = ProxyProcess(launch_config(flags, passed), launch, log)
    try:
        assert (proxy.ports, proxy.unhealthy_model()) == (Ports(1, 2, 3), None)
        says.write_text("")
        first = end_of(proxy)
        proxy.keep_alive()  # returns although the next proxy writes nothing
        assert proxy.fault() == "the proxy is being restarted"
        assert proxy.unhealthy_model() is None
        says.write_text(Ports(1, 2, 3).to_json() + "\npreprocessor\n")
        assert end_of(proxy) != first
        proxy.keep_alive()
        deadline = time.monotonic() + PATIENCE_S
        while (model := proxy.unhealthy_model()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert model == "preprocessor", "the line before it has ports"
    finally:
        proxy.stop()
        log.close()
        launch.close()


def start_of_a_program(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Make the launcher start this program instead of a front end."""
    start = LaunchLog.start

    def replaced(log: LaunchLog, command: list[str], **options: Any) -> Any:
        return start(log, [sys.executable, "-c", program], **options)

    monkeypatch.setattr(LaunchLog, "start", replaced)


def end_of(proxy: ProxyProcess) -> int:
    """Kill the proxy, wait for its end, and return its pid."""
    process = proxy._process
    process.kill()
    process.wait(PATIENCE_S)
    return process.pid


@pytest.mark.nightly  # by day a stopped proxy, and a killed gateway
@pytest.mark.usefixtures("served")
def test_stopped_gateway_makes_the_server_unready_until_replaced(launch: Launch) -> None:
    (port,) = free_ports(1)
    server = launch(0, "--gateway", "--gateway-port", str(port))
    server.until(lambda: server.state == "ready" and answers(port))
    (first,) = server.children("stretto_gateway")
    os.kill(first, signal.SIGSTOP)
    server.until(lambda: server.state == "unready")
    server.until(lambda: server.children("stretto_gateway") not in ([], [first]))
    server.until(lambda: server.state == "ready" and answers(port))
    assert f"[serve] the gateway (pid {first}) is stopped\n" in server.said
    assert server.num_ready == 1, "the server has not been restarted"


def named(name: str, server: Launched) -> list[int]:
    return [each.pid for each in descendants(server.process.pid) if each.name == name]


@pytest.mark.usefixtures("served")
def test_connections_wait_while_a_killed_gateway_is_replaced_from_the_spare(launch: Launch) -> None:
    (port,) = free_ports(1)
    server = launch(0, "--gateway", "--gateway-port", str(port))
    server.until(lambda: server.state == "ready" and answers(port))
    (first,) = server.children("stretto_gateway")
    (spare,) = named(GATEWAY_SPARE_NAME, server)
    for _ in range(2):
        os.kill(server.process.pid, signal.SIGSTOP)  # so that nothing replaces the gateway yet
        (killed,) = server.children("stretto_gateway")
        assert parent_of(killed) == spare
        os.kill(killed, signal.SIGKILL)
        until(lambda pid=killed: read_process(pid) is None)
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as waiting:
            waiting.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            os.kill(server.process.pid, signal.SIGCONT)
            assert waiting.recv(64).startswith(b"HTTP/1.1 200")
        server.until(lambda: server.state == "ready")
    assert named(GATEWAY_SPARE_NAME, server) == [spare]
    assert server.children("stretto_gateway") not in ([], [first])
    assert server.num_ready == 1, "the server has not been restarted"
    os.kill(spare, signal.SIGKILL)
    server.until(lambda: named(GATEWAY_SPARE_NAME, server) not in ([], [spare]))
    server.until(lambda: server.state == "ready" and answers(port))
    server.process.kill()
    server.process.wait()
    server.until(lambda: not answers(port))


def parent_of(pid: int) -> int | None:
    process = read_process(pid)
    return None if process is None else process.parent


def test_gateway_that_is_never_ready_is_reported(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    """Clients that need no gateway can use the server meanwhile."""
    (port,) = free_ports(1)
    (nobody,) = free_ports(1)
    server = launch(0, "--gateway", "--gateway-port", str(port), f"--gateway-arg=--server=localhost:{nobody}")
    server.until(lambda: "accepts requests" in server.said)
    (pid,) = server.children("stretto_gateway")
    reason = f"the gateway (pid {pid}) is not ready: no server at its --server accepts requests"
    assert f"[serve] {reason}\n" in server.said
    server.until(lambda: server.state == "unready")
    assert server.num_ready == 0
    record = server.folder / "serve.json"
    assert serve.main(["--status", "--pid-file", str(record)]) == 1
    assert json.loads(capsys.readouterr().out)["reason"] == reason
    own = server.folder / f"server-{server.ports[0]}.pid"  # where a command without --server looks
    own.symlink_to(record)
    BackgroundServer(server.ports[0], server.folder, ("/nowhere/launcher",)).ensure_ready()
    assert server.num_starts == 1


@pytest.mark.usefixtures("proxy_variables")
def test_server_is_ready_while_its_gateway_is(launch: Launch, served: Path) -> None:
    """The gateway reaches its server directly despite variables for HTTP proxies, and its page's address is logged."""
    (port,) = free_ports(1)
    served.write_text("not ready")
    server = launch(0, "--gateway", "--gateway-port", str(port))
    server.until(lambda: server.state == "unready")
    assert server.num_ready == 0
    served.write_text("")
    server.until(lambda: server.state == "ready" and server.num_ready == 1)
    served.write_text("not ready")
    server.until(lambda: server.state == "unready")
    served.write_text("")
    server.until(lambda: server.state == "ready")
    server.until(lambda: "[serve] all processes are running again\n" in server.said)  # logged after the state
    assert f"[serve] web page: http://127.0.0.1:{port}/\n" in server.said
