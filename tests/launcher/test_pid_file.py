"""The launcher's pid file: its ports and its state."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from stretto.launcher import background
from stretto.launcher import command as serve
from stretto.launcher.processes import birth, is_stopped

PORTS = {"http": 1, "grpc": 2, "metrics": 3}
LAUNCHER = "import signal, sys; print(flush=True); signal.pause()  # serve"


@pytest.fixture
def launcher(tmp_path: Path) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE)
    process.stdout.read(1)
    record = {"pid": process.pid, "born": birth(process.pid), "state": "ready", "ports": PORTS, "log": "x.log"}
    (tmp_path / "pid.json").write_text(json.dumps(record))
    yield process
    process.kill()
    process.wait()


def test_status_of_a_running_launcher_is_read(
    launcher: "subprocess.Popen[bytes]", tmp_path: Path, capsys: object
) -> None:
    assert background.read(tmp_path / "pid.json")["ports"] == PORTS
    assert serve.main(["--status", "--pid-file", str(tmp_path / "pid.json")]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "ready"


def test_stop_command_waits_for_the_launcher(
    launcher: "subprocess.Popen[bytes]", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve.main(["--stop", "--pid-file", str(tmp_path / "pid.json")]) == 0
    assert launcher.wait(0) != 0
    assert capsys.readouterr().err == "[serve] stopped\n"


def test_stop_reports_a_launcher_that_exceeds_its_stop_time(
    launcher: "subprocess.Popen[bytes]", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pid.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stop_seconds": 0.2}))
    os.kill(launcher.pid, signal.SIGSTOP)
    while not is_stopped(launcher.pid):  # or SIGTERM could come first
        time.sleep(0.001)
    assert serve.main(["--stop", "--pid-file", str(path)]) == 1
    assert f"the launcher {launcher.pid} has not stopped within 0.2 s" in capsys.readouterr().err


def test_pid_file_contains_the_version(tmp_path: Path) -> None:
    background.write(tmp_path / "pid.json", "ready", PORTS, "x.log")
    assert background.read(tmp_path / "pid.json")["version"] == version("stretto")


def test_exited_launcher_has_no_status(launcher: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    launcher.kill()
    launcher.wait()
    assert background.read(tmp_path / "pid.json") is None
    assert not background.stop(tmp_path / "pid.json")
    assert serve.main(["--status", "--pid-file", str(tmp_path / "pid.json")]) == 3


def test_a_reused_pid_is_not_stopped(launcher: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    path = tmp_path / "pid.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"born": birth(launcher.pid) - 1}))
    assert background.read(path) is None
    assert not background.stop(path)
    assert launcher.poll() is None


@pytest.mark.parametrize("odd", [{"ports": 5}, {"ports": {"http": "x"}}, {"stop_seconds": "x"}, "folder", "FIFO"])
def test_record_of_other_types_is_not_used(
    odd: dict[str, Any] | str, launcher: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    path = tmp_path / "pid.json"
    if isinstance(odd, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | odd))
    else:
        path.unlink()
        (os.mkdir if odd == "folder" else os.mkfifo)(path)
    assert background.read(path) is None
    assert launcher.poll() is None


def test_status_of_an_unready_server_includes_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pid.json"
    background.write(path, "unready", PORTS, "x.log", "a stub (pid 7) is stopped")
    assert serve.main(["--status", "--pid-file", str(path)]) == 1
    assert json.loads(capsys.readouterr().out)["reason"] == "a stub (pid 7) is stopped"


DAMAGED = (
    None,
    "",
    "{",
    "[]",
    "7",
    "{}",
    '{"state": "ready"}',
    '{"pid": "x"}',
    '{"pid": 1}',
    "[" * 100_000,
    "\0",
    "\ud800",
)


@pytest.mark.parametrize("text", DAMAGED)
def test_missing_or_damaged_pid_files_read_as_none(
    tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "pid.json").write_bytes(text.encode(errors="surrogatepass"))
    assert background.read(tmp_path / "pid.json") is None
    assert serve.main(["--status", "--pid-file", str(tmp_path / "pid.json")]) == 3
    assert serve.main(["--stop", "--pid-file", str(tmp_path / "pid.json")]) == 0
    assert capsys.readouterr().err == "[serve] no server was running\n"


def test_pid_file_is_atomic_and_removed_only_by_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "run" / "pid.json"
    background.write(path, "starting", PORTS, "x.log")
    record = json.loads(path.read_text())
    assert (record["state"], record["ports"], record["log"]) == ("starting", PORTS, "x.log")
    assert [each.name for each in path.parent.iterdir()] == ["pid.json"]
    path.write_text(json.dumps(record | {"pid": 1}))
    background.remove(path)
    assert path.exists()
