"""The launcher's pid file: its ports and its state."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

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


def test_a_living_launcher_is_read(launcher: "subprocess.Popen[bytes]", tmp_path: Path, capsys: object) -> None:
    assert background.read(tmp_path / "pid.json")["ports"] == PORTS
    assert serve.main(["--status", "--pid-file", str(tmp_path / "pid.json")]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "ready"


def test_stopping_waits_for_the_launcher(launcher: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    assert serve.main(["--stop", "--pid-file", str(tmp_path / "pid.json")]) == 0
    assert launcher.wait(0) != 0


def test_a_launcher_that_drains_for_longer_than_it_said_is_named(
    launcher: "subprocess.Popen[bytes]", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pid.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stop_seconds": 0.2}))
    os.kill(launcher.pid, signal.SIGSTOP)
    while not is_stopped(launcher.pid):  # or SIGTERM could come first
        time.sleep(0.001)
    assert serve.main(["--stop", "--pid-file", str(path)]) == 1
    assert f"the launcher {launcher.pid} has not stopped within 0.2 s" in capsys.readouterr().err


def test_a_launcher_tells_its_version(tmp_path: Path) -> None:
    background.write(tmp_path / "pid.json", "ready", PORTS, "x.log")
    assert background.read(tmp_path / "pid.json")["version"] == version("stretto")


def test_a_launcher_that_is_gone_is_none(launcher: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
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


def test_an_unready_server_is_reported_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
def test_no_file_or_a_damaged_one_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "pid.json").write_bytes(text.encode(errors="surrogatepass"))
    assert background.read(tmp_path / "pid.json") is None
    assert serve.main(["--status", "--pid-file", str(tmp_path / "pid.json")]) == 3
    assert serve.main(["--stop", "--pid-file", str(tmp_path / "pid.json")]) == 0


def test_a_file_is_written_whole_and_only_its_owner_removes_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "pid.json"
    background.write(path, "starting", PORTS, "x.log")
    record = json.loads(path.read_text())
    assert (record["state"], record["ports"], record["log"]) == ("starting", PORTS, "x.log")
    assert [each.name for each in path.parent.iterdir()] == ["pid.json"]
    path.write_text(json.dumps(record | {"pid": 1}))
    background.remove(path)
    assert path.exists()
