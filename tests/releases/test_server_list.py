"""`stretto ps`: the table, the JSON, and the health of servers."""

import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from stretto.cli import main
from stretto.launcher.options import ServedModel
from stretto.launcher.running import RunningServer
from stretto.releases import show as server_list
from stretto.releases.messages import InstallationStage
from stretto.releases.store import InstalledModels

VOICE = ServedModel("voice", "0123")


class Triton(http.server.HTTPServer):
    """Server of health requests; `status` is the answer."""

    status = 200


class Health(http.server.BaseHTTPRequestHandler):
    """Answers health requests with the status of the server."""

    def do_GET(self) -> None:
        assert self.path == "/v2/health/ready"
        assert isinstance(self.server, Triton)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def triton() -> Iterator[Triton]:
    """Serve health requests on a free port."""
    server = Triton(("127.0.0.1", 0), Health)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def server(port: int, state: str = "ready", reason: str = "", model: ServedModel | None = VOICE) -> RunningServer:
    ports = {"http": port, "grpc": port + 1}
    return RunningServer(os.getpid(), state, reason, model, ports, Path("/state/server.pid"), "/state/server.log")


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> list[RunningServer]:
    """Return the list by which this test replaces the user's servers."""
    servers: list[RunningServer] = []
    monkeypatch.setattr(server_list, "running_servers", lambda: servers)
    return servers


def test_table_has_a_line_for_each_server(running: list[RunningServer], capsys: pytest.CaptureFixture[str]) -> None:
    running += [server(8000), server(9000, "unready", "a stub is stopped", None)]
    assert main(["ps"]) == 0
    heading, first, second = capsys.readouterr().out.splitlines()
    assert heading.split() == ["MODEL", "PORTS", "STATE", "MEMORY", "REQUESTS", "PID"]
    assert first.startswith("voice  http 8000,grpc 8001  ready  ")
    assert first.split()[-2:] == ["0", str(os.getpid())]
    assert second.startswith("-      http 9000,grpc 9001  unready (a stub is stopped)  ")


def test_json_has_an_object_for_each_server(running: list[RunningServer], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    running.append(server(8000))
    assert main(["ps", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found.pop("memory_bytes") > 1 << 20, "this process"
    assert found == {
        "model": {"name": "voice", "key": "0123", "repository": "", "revision": "", "configuration": ""},
        "ports": {"http": 8000, "grpc": 8001},
        "state": "ready",
        "reason": "",
        "requests": 0,
        "pid": os.getpid(),
        "pid_file": "/state/server.pid",
        "log": "/state/server.log",
    }


def test_ready_server_is_healthy_while_it_answers(
    running: list[RunningServer], triton: Triton, capsys: pytest.CaptureFixture[str]
) -> None:
    port = triton.server_address[1]
    running.append(server(port))
    assert main(["ps", "--health"]) == 0
    triton.status = 400
    assert main(["ps", "--health"]) == 1
    assert capsys.readouterr().out == f"ready\nvoice: port {port}: status 400\n"


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        ("starting", "", "voice is starting\n"),
        ("unready", "a stub is stopped", "voice is unready: a stub is stopped\n"),
    ],
)
def test_unready_server_is_unhealthy(
    running: list[RunningServer], capsys: pytest.CaptureFixture[str], state: str, reason: str, expected: str
) -> None:
    running.append(server(1, state, reason))
    assert main(["ps", "--health"]) == 1
    assert capsys.readouterr().out == expected


def test_installation_is_healthy_while_it_makes_progress(
    running: list[RunningServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert running == []
    monkeypatch.setenv("STRETTO_MODELS", str(tmp_path))
    with InstalledModels(tmp_path).lock("voice--1") as progress:
        assert main(["ps", "--health"]) == 0
        os.utime(tmp_path / ".locks" / "voice--1.lock", (0, 0))
        assert main(["ps", "--health"]) == 1
        progress()
        assert main(["ps", "--health"]) == 0
        os.utime(tmp_path / ".locks" / "voice--1.lock", (0, 0))
        InstallationStage("downloading", "voice", 1, progress).advance(1)
        assert main(["ps", "--health"]) == 0
        running.append(server(1, "starting"))
        assert main(["ps", "--health"]) == 1
    first, stalled, *others = capsys.readouterr().out.splitlines()
    assert (first, *others) == (*["voice is being installed"] * 3, "voice is starting")
    assert stalled.startswith("voice is being installed, without progress for ")


def test_missing_server_is_unhealthy(running: list[RunningServer], capsys: pytest.CaptureFixture[str]) -> None:
    assert running == []
    assert main(["ps", "--health"]) == 1
    assert capsys.readouterr().out == "no server is running\n"
