"""The background server with a fake launcher: which process starts it, and which ones wait for it."""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from stretto.launcher import background
from stretto.launcher.background import BackgroundServer, CannotServe
from stretto.launcher.config import default_pid_file
from stretto.launcher.installation import LaunchError
from stretto.launcher.options import RepositoryOptions, ServedModel
from stretto.launcher.processes import read_process
from tests.patience import PATIENCE_S, until
from tests.ports import free_row
from tests.tiers import by_night

pytestmark = pytest.mark.slow

CALL = """
import sys
from pathlib import Path
from stretto.launcher.background import BackgroundServer
from stretto.launcher.installation import LaunchError
port, folder, repository, *launcher = sys.argv[1:]
chosen = (Path(repository), True, ("--drain-seconds=5",)) if repository else ()
try:
    BackgroundServer(int(port), Path(folder), tuple(launcher), *chosen).ensure_ready()
except LaunchError as error:
    sys.exit(str(error))
print("ready")
"""
# Writes the pid file that it is given, and ends with its starter, as the launcher does. Its server is not ready as long
# as there is a file `slow`.
LAUNCHER = """
import os, pathlib, signal, sys, time
from stretto.launcher import background
from stretto.launcher.options import served_model
here = pathlib.Path(sys.argv[1])
with (here / "starts").open("a") as starts:
    starts.write(str(os.getpid()) + "\\n")
if (here / "fails").exists():
    sys.exit("port 8000 is in use")
(here / "environment").write_text(str(dict(os.environ)))
(here / "flags").write_text(" ".join(sys.argv[2:]))
served = sys.argv[sys.argv.index("--model-repository") + 1] if "--model-repository" in sys.argv else here
model = served_model(pathlib.Path(served))
known_by = pathlib.Path(sys.argv[sys.argv.index("--pid-file") + 1])
background.write(known_by, "starting", {}, "x.log", model=model)
background.end_with_starter()
while (here / "slow").exists():
    time.sleep(0.02)
background.outlive_starter()
background.write(known_by, "ready", {}, "x.log", model=model)
signal.pause()
"""


class Caller:
    """Starter of calls for one background server, which ends the fake launchers that they have started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_row(4)
        self.calls: list[subprocess.Popen[str]] = []

    def call(self, repository: Path | str = "") -> "subprocess.Popen[str]":
        launcher = [sys.executable, "-c", LAUNCHER, str(self.folder), "serve"]
        command = [sys.executable, "-c", CALL, str(self.port), str(self.folder / "state"), str(repository), *launcher]
        pipe, environment = subprocess.PIPE, os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
        self.calls.append(subprocess.Popen(command, env=environment, text=True, stdout=pipe, stderr=pipe))
        return self.calls[-1]

    def until_started(self) -> None:
        until(lambda: self.starts, "no call has started the server")

    @property
    def starts(self) -> list[int]:
        path = self.folder / "starts"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def end(self) -> None:
        for call in self.calls:
            call.kill()
            call.communicate()
        for pid in [] if (self.folder / "fails").exists() else self.starts:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def record(self) -> dict[str, Any] | None:
        return background.read(default_pid_file(self.port, self.folder / "state"))


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[Caller]:
    made = Caller(tmp_path)
    yield made
    made.end()


@pytest.mark.nightly  # by day, the second call comes while the first one waits
def test_concurrent_calls_start_the_server_once(caller: Caller) -> None:
    calls = [caller.call(), caller.call()]
    said = [call.communicate(timeout=PATIENCE_S) for call in calls]
    assert [output for output, _ in said] == ["ready\n", "ready\n"], said
    assert len(caller.starts) == 1


def test_concurrent_client_waits_for_a_server_already_starting(caller: Caller) -> None:
    (caller.folder / "slow").touch()
    first = caller.call()
    caller.until_started()
    second = caller.call()
    assert second.stderr is not None
    said, _, _ = select.select([second.stderr], [], [], PATIENCE_S)
    assert said, "the second call has said nothing"
    assert second.stderr.readline() == "another process is starting the server; waiting for it\n"
    (caller.folder / "slow").unlink()
    assert second.communicate(timeout=PATIENCE_S) == ("ready\n", "")
    assert f"starting the server on ports {caller.port} (HTTP)" in first.communicate(timeout=PATIENCE_S)[1]
    assert len(caller.starts) == 1


@pytest.mark.parametrize(
    ("ports", "said"), [({"http": 9000}, ""), ({"gateway": 9003}, "web page: http://localhost:9003/\n")]
)
def test_ready_server_prints_the_gateway_page(
    ports: dict[str, int],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(background, "state_folder", lambda: tmp_path)
    monkeypatch.setenv("STRETTO_PORT", "9000")
    background.write(default_pid_file(9000, tmp_path), "ready", ports, "x.log")
    assert background.ready_server() == "localhost:9001"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("number", [signal.SIGKILL, *by_night(signal.SIGINT, signal.SIGTERM)])
def test_start_ends_with_the_call_that_has_begun_it(caller: Caller, number: signal.Signals) -> None:
    (caller.folder / "slow").touch()
    interrupted = caller.call()
    until(lambda: caller.record is not None)
    waiting = caller.call()
    interrupted.send_signal(number)
    interrupted.communicate(timeout=PATIENCE_S)
    assert interrupted.returncode == -number
    until(lambda: len(caller.starts) == 2, "the call that waits has started no server")
    assert read_process(caller.starts[0]) is None
    (caller.folder / "slow").unlink()
    assert waiting.communicate(timeout=PATIENCE_S)[0] == "ready\n"
    assert len(caller.starts) == 2
    assert read_process(caller.starts[1]) is not None


@pytest.mark.parametrize("becomes_ready", [True, False])
def test_server_that_another_process_starts_is_awaited(caller: Caller, becomes_ready: bool) -> None:
    (caller.folder / "slow").touch()
    first = caller.call()
    until(lambda: caller.record is not None)
    server = BackgroundServer(caller.port, caller.folder / "state")
    with ThreadPoolExecutor(1) as pool:
        is_running = pool.submit(server.is_running)
        if becomes_ready:
            (caller.folder / "slow").unlink()
        else:
            first.kill()
        assert is_running.result() is becomes_ready


def test_server_that_is_not_ready_is_reported_without_a_wait(
    caller: Caller, capsys: pytest.CaptureFixture[str]
) -> None:
    path = default_pid_file(caller.port, caller.folder / "state")
    path.parent.mkdir(parents=True, exist_ok=True)
    background.write(path, "unready", {}, "x.log", reason="the gateway is stopped")
    assert BackgroundServer(caller.port, caller.folder / "state").is_running()
    assert f"the server on port {caller.port} is not ready: the gateway is stopped" in capsys.readouterr().err
    path.unlink()


def test_background_server_start_failure_reports_the_reason(caller: Caller) -> None:
    (caller.folder / "fails").touch()
    call = caller.call()
    _, errors = call.communicate(timeout=PATIENCE_S)
    assert call.returncode == 1
    assert errors.endswith("the server did not start:\nport 8000 is in use\n")
    assert len(caller.starts) == 1


def test_externally_started_server_is_used_unchanged(tmp_path: Path) -> None:
    first = free_row(3)
    with socket.socket() as other:
        other.bind(("127.0.0.1", first + 1))
        other.listen()
        BackgroundServer(first, tmp_path / "state", ("/nowhere/launcher",)).ensure_ready()
    assert not (tmp_path / "state").exists()


def installed(folder: Path, name: str, key: str) -> Path:
    """Return a model repository with the record of an installed model."""
    folder.mkdir()
    RepositoryOptions(model=ServedModel(name, key)).write(folder)
    return folder


def test_server_of_a_repository_is_started_with_its_ports_and_gateway(caller: Caller, tmp_path: Path) -> None:
    voice = installed(tmp_path / "voice", "voice", "0123")
    assert caller.call(voice).communicate(timeout=PATIENCE_S)[0] == "ready\n"
    flags = (tmp_path / "flags").read_text()
    assert f"--metrics-port {caller.port + 2}" in flags
    assert "PYTHONDONTWRITEBYTECODE" not in (tmp_path / "environment").read_text()
    (pid,) = caller.starts
    assert os.getsid(pid) == pid
    assert flags.endswith(f"--gateway --gateway-port {caller.port + 3} --model-repository {voice} --drain-seconds=5")
    record = background.read(default_pid_file(caller.port, tmp_path / "state"))
    assert record is not None
    assert record["model"] == dict.fromkeys(("revision", "configuration"), "") | {
        "name": "voice",
        "key": "0123",
        "repository": str(voice),
    }


def test_server_of_the_same_model_is_used_and_one_of_another_refused(caller: Caller, tmp_path: Path) -> None:
    """Another repository of the same installed model is the same model, for example one for another device."""
    caller.call(installed(tmp_path / "voice", "voice", "0123")).communicate(timeout=PATIENCE_S)
    again = caller.call(installed(tmp_path / "again", "voice", "0123"))
    assert again.communicate(timeout=PATIENCE_S) == ("ready\n", "")
    for folder in (installed(tmp_path / "newer", "voice", "4567"), tmp_path):
        refused = caller.call(folder)
        stop = f"stretto serve --stop --http-port {caller.port}, or --port"
        assert refused.communicate(timeout=PATIENCE_S) == ("", f"port {caller.port} serves voice: {stop}\n")
        assert refused.returncode == 1
    assert caller.call().communicate(timeout=PATIENCE_S) == ("ready\n", ""), "speak uses any model's server"
    assert len(caller.starts) == 1


def test_server_of_another_model_that_is_starting_is_refused(caller: Caller, tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    first = caller.call(installed(tmp_path / "voice", "voice", "0123"))
    caller.until_started()
    until(lambda: default_pid_file(caller.port, tmp_path / "state").exists(), "the launcher has not written its file")
    assert f"port {caller.port} serves voice" in caller.call(tmp_path).communicate(timeout=PATIENCE_S)[1]
    (tmp_path / "slow").unlink()
    assert first.communicate(timeout=PATIENCE_S)[0] == "ready\n"


def test_default_port_of_another_model_is_named_without_a_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRETTO_PORT", "9000")
    background.write(default_pid_file(9000, tmp_path), "ready", {}, "x.log", model=ServedModel("a-voice", "01"))
    server = BackgroundServer(9000, tmp_path, repository=tmp_path)
    with pytest.raises(LaunchError, match=r"^port 9000 serves a-voice: stretto serve --stop, or --port$"):
        server.ensure_ready()


def test_port_of_another_program_is_refused_for_a_chosen_model(tmp_path: Path) -> None:
    first = free_row(4)
    with socket.socket() as other:
        other.bind(("127.0.0.1", first + 1))
        other.listen()
        server = BackgroundServer(first, tmp_path / "state", ("/nowhere/launcher",), tmp_path)
        with pytest.raises(LaunchError, match=rf"^port {first + 1} is in use by another program: .*--port$"):
            server.ensure_ready()


def test_missing_server_error_names_the_missing_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(background, "CONTAINER_SERVER", tmp_path / "tritonserver")
    monkeypatch.setattr(background.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(background, "state_folder", lambda: tmp_path)
    port = free_row(3)
    monkeypatch.setenv("STRETTO_PORT", str(port))
    message = f"no server listens on port {port + 1}, and no server can be started here: the extra 'embedded' is not"
    with pytest.raises(CannotServe, match=rf"^{message} installed; name another server with --server HOST:PORT$"):
        background.ready_server()
