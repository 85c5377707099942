"""The launcher with a scripted server: starts, refused command lines, and stops."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
from functools import partial
from pathlib import Path

import pytest

from stretto.launcher import command as serve
from stretto.launcher import installation, launch
from stretto.launcher.launch import LAUNCH_ID
from tests.launcher.launched import Launch, Launched, busy_table, hang
from tests.patience import PATIENCE_S
from tests.read_only import run_read_only
from tests.tiers import by_night

pytestmark = pytest.mark.slow

REPOSITORY = installation.bundled_repository()


def test_launcher_starts_reports_state_and_stops(launch: Launch, tmp_path: Path) -> None:
    server = launch()
    server.until_ready()
    record = json.loads((tmp_path / "serve.json").read_text())
    assert (record["pid"], record["state"]) == (server.process.pid, "ready")
    assert len(server.leftovers()) == 3  # the lock, the server's region, the folder of sockets
    server.process.terminate()
    assert server.process.wait(PATIENCE_S) == 0
    assert "drained" in server.said
    assert server.leftovers() == []
    assert not (tmp_path / "serve.json").exists()


def test_aborted_starts_are_retried(launch: Launch) -> None:
    server = launch(2)
    server.until_ready()
    assert "start 2 of 10 aborted: the server ended with signal SIGABRT: boost" in server.said


@pytest.mark.nightly  # by day a server that aborts twice, and one that hangs at each start
def test_repeatedly_aborting_server_ends_the_launcher(launch: Launch) -> None:
    server = launch(9, "--start-attempts=2")
    assert server.process.wait(PATIENCE_S) == 1
    assert "aborted 2 times; last error: the server ended with signal SIGABRT: boost" in server.said
    assert server.leftovers() == []


HANGS = {"waiting": "waited for a stub to end", "lost": "not noticed the end of a stub"}


@pytest.mark.nightly  # by day test_repeatedly_hanging_server_ends_the_launcher
@pytest.mark.parametrize("way", ["lost", "waiting"])
def test_hanging_start_is_retried(launch: Launch, tmp_path: Path, way: str) -> None:
    hang(tmp_path, 1, way)
    server = launch()
    server.until_ready()
    assert f"start 1 of 10 aborted: the server has {HANGS[way]} for 0.5 s" in server.said
    assert server.num_starts == 2
    assert len(server.processes()) == 3, "only the spare, the server and its stub, nothing of the start that hung"


@pytest.mark.parametrize("way", ["waiting", *by_night("lost")])
def test_repeatedly_hanging_server_ends_the_launcher(launch: Launch, tmp_path: Path, way: str) -> None:
    hang(tmp_path, 9, way)
    server = launch(0, "--start-attempts=2")
    assert server.process.wait(PATIENCE_S) == 1
    assert f"aborted 2 times; last error: the server has {HANGS[way]} for 0.5 s" in server.said
    assert f"full log: {tmp_path}" in server.said
    assert server.processes() == []
    assert server.leftovers() == []


def test_model_load_failure_ends_the_launcher_immediately(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "fails").touch()
    server = launch()
    assert server.process.wait(PATIENCE_S) == 1
    assert "failed to load 'language_model' version 1: Internal: no checkpoint" in server.said
    assert f"full log: {tmp_path}" in server.said
    assert server.num_starts == 1


@pytest.mark.parametrize(("place", "flag"), [("HOME", "--pid-file and --log-file"), ("XDG_CACHE_HOME", "--cache")])
def test_unwritable_home_folder_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str, flag: str
) -> None:
    """An installed package writes there. Root may write to any folder, but not below a file."""
    home = tmp_path / "file"
    home.touch()
    monkeypatch.setattr(installation, "clone", lambda: None)
    monkeypatch.setenv("XDG_STATE_HOME", "" if place == "HOME" else str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(place, str(home))
    assert serve.main(["--model-repository", str(REPOSITORY)]) == 1
    said = re.sub(r"\[serve\] cleaned up after .*\n", "", capsys.readouterr().err)  # of tests that were killed
    assert re.fullmatch(rf"\[serve\] cannot write {home}\S* \(Not a directory\): choose .* with {flag}\n", said)


@pytest.mark.parametrize("place", ["none", "file"])
def test_missing_or_unwritable_shared_memory_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(serve, "begin_launch", partial(launch.begin_launch, tmp_path / place))
    pid_file = tmp_path / "pid"
    assert serve.main(["--pid-file", str(pid_file), "--log-file", str(tmp_path / "log"), "--cache", str(tmp_path)]) == 1
    said = re.sub(r"\[serve\] cleaned up after .*\n", "", capsys.readouterr().err)  # of tests that were killed
    assert re.fullmatch(
        r"\[serve\] cannot write /dev/shm \(.*\), which the server needs .*: mount a tmpfs there.*\n", said
    )
    assert not pid_file.exists()


@pytest.mark.parametrize(("place", "reason"), [("none", "No such file or directory"), ("file", "Not a directory")])
def test_unwritable_folder_of_tritons_backend_is_named_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(serve, "ENVIRONMENTS", tmp_path / place, raising=False)
    monkeypatch.setattr(serve, "begin_launch", partial(launch.begin_launch, tmp_path / "none"))  # ends a start
    pid_file = tmp_path / "pid"
    assert serve.main(["--pid-file", str(pid_file), "--log-file", str(tmp_path / "log"), "--cache", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"[serve] cannot write {tmp_path / place} ({reason}), which Triton's Python backend needs")
    assert said.count("\n") == 1
    assert not pid_file.exists()


def test_read_only_tmp_is_named_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above replaces this one on systems that permit no mounts."""
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    code = "import sys; from stretto.launcher.command import main; sys.exit(main([]))"
    done = run_read_only(Path("/tmp"), code)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("[serve] cannot write /tmp (Read-only file system), which Triton's Python backend")
    assert done.stderr.count("\n") == 1


def test_full_shared_memory_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(launch.Disconnects, "create", fail)
    with pytest.raises(OSError, match="No space left on device"):
        launch.begin_launch(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--log-file", "--pid-file"])
def test_unwritable_log_or_pid_file_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    (tmp_path / "file").touch()
    flags = {"--log-file": str(tmp_path / "log"), "--pid-file": str(tmp_path / "pid")} | {
        flag: str(tmp_path / "file" / "x")
    }
    assert serve.main([*(word for pair in flags.items() for word in pair), "--cache", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert f"{flag}" in said
    assert str(tmp_path / "file") in said


def test_a_second_launcher_does_not_change_the_pid_file_of_the_first(launch: Launch, tmp_path: Path) -> None:
    first = launch()
    first.until_ready()
    record = (tmp_path / "serve.json").read_text()
    (tmp_path / "second").mkdir()
    second = Launched(tmp_path / "second", 0, "--pid-file", str(tmp_path / "serve.json"))
    assert second.process.wait(PATIENCE_S) == 1
    assert f"serve.json: a launcher is running (pid {first.process.pid})" in second.said
    assert (tmp_path / "serve.json").read_text() == record


@pytest.mark.nightly  # by day a model that does not load
def test_an_unknown_flag_is_named(launch: Launch) -> None:
    server = launch(0, "--sing=a song")
    assert server.process.wait(PATIENCE_S) == 1
    assert "the server ended with exit code 1: tritonserver: unrecognized option '--sing=a song'\n" in server.said


def test_a_missing_repository_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main(["--model-repository", str(tmp_path / "none")]) == 1
    assert f"there is no folder {tmp_path / 'none'}" in capsys.readouterr().err


def test_a_repository_without_a_model_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main(["--model-repository", str(tmp_path)]) == 1
    assert f"no folder in {tmp_path} contains a config.pbtxt" in capsys.readouterr().err


@pytest.mark.nightly  # by day test_ports.py
def test_launcher_names_a_port_in_use(launch: Launch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = launch(0, f"--metrics-port={port}")
        assert server.process.wait(PATIENCE_S) == 1
    assert f"port {port} is in use: choose another with --metrics-port" in server.said


def test_endless_streams_delay_the_stop_by_drain_seconds(launch: Launch) -> None:
    server = launch(0, "--drain-seconds=0.5")
    server.until_ready()
    pid = server.server_pid
    table = busy_table(pid)
    server.process.terminate()
    assert server.process.wait(PATIENCE_S) == 0
    assert "stopping with 1 streams still open" in server.said
    table.remove()


@pytest.mark.nightly
def test_second_signal_ends_draining_at_once(launch: Launch) -> None:
    server = launch(0, "--drain-seconds=600")
    server.until_ready()
    table = busy_table(server.server_pid)
    server.process.terminate()
    server.until(lambda: server.state == "draining")
    server.process.terminate()
    assert server.process.wait(PATIENCE_S) == 0
    table.remove()


@pytest.mark.parametrize("state", ["ready", *by_night("starting")])
def test_killed_launcher_leaves_no_processes_or_shared_memory(launch: Launch, tmp_path: Path, state: str) -> None:
    hang(tmp_path, int(state == "starting"), "waiting")
    server = launch()
    server.until(lambda: server.state == state and (tmp_path / "stub").exists())
    with subprocess.Popen(["sleep", "600"], env=os.environ | {LAUNCH_ID: server.launch_id}) as engine:
        server.process.kill()
        server.process.wait()
        assert engine.wait(PATIENCE_S) == -signal.SIGKILL, "like an engine, which outlives its parent"
    server.until(lambda: server.leftovers() == [] and server.processes() == [])
