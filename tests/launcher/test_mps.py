"""NVIDIA's MPS daemon starts and ends with the server. A script replaces NVIDIA's program."""

import os
import sys
from pathlib import Path

import pytest

from stretto.launcher.mps import LOGS, PIPES, PROGRAM, VISIBLE
from stretto.launcher.options import OPTIONS_FILE, RepositoryOptions
from stretto.launcher.processes import environment_of, read_process
from tests.launcher.launched import Launch, Launched
from tests.patience import PATIENCE_S
from tests.tiers import by_night

pytestmark = pytest.mark.slow
# `-d` leaves a process in the background; "quit" on standard input ends it, unless the file `stays` exists.
DAEMON = """#!{python}
import os, pathlib, signal, subprocess, sys
here, pipes = pathlib.Path({here!r}), pathlib.Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
if (here / "refuses").exists():
    sys.exit("An instance of this daemon is already running")
if sys.argv[1:] == ["-d"]:
    daemon = subprocess.Popen(["sleep", "600"], start_new_session=True)
    (pipes / "control").write_text(str(daemon.pid))
    with (here / "daemons").open("a") as daemons:
        daemons.write(str(daemon.pid) + "\\n")
elif sys.stdin.read() == "quit\\n" and not (here / "stays").exists():
    (here / "quits").touch()
    os.kill(int((pipes / "control").read_text()), signal.SIGTERM)
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository that requests MPS, and put the daemon's program on PATH."""
    folder = tmp_path / "models"
    (folder / "speech").mkdir(parents=True)
    (folder / "speech" / "config.pbtxt").touch()
    RepositoryOptions(shares_by_mps=True).write(folder)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / PROGRAM).write_text(DAEMON.format(python=sys.executable, here=str(tmp_path)))
    (programs / PROGRAM).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv(VISIBLE, "1")
    monkeypatch.delenv(PIPES, raising=False)
    return folder


def daemons(server: Launched) -> list[int]:
    return [int(line) for line in (server.folder / "daemons").read_text().split()]


def ended(server: Launched) -> None:
    server.process.terminate()
    server.process.wait()
    assert not server.leftovers()


@pytest.mark.parametrize("stays", [False, *by_night(True)])
def test_mps_daemon_lives_as_long_as_the_server(launch: Launch, repository: Path, stays: bool) -> None:
    """It serves all GPUs, and the server's processes find it. If it does not end by itself, it is killed."""
    server = launch(0, "--model-repository", str(repository))
    server.until_ready()
    (daemon,) = daemons(server)
    pipes = environment_of(daemon, PIPES)
    assert pipes is not None
    assert Path(pipes, "control").read_text() == str(daemon)
    assert environment_of(daemon, VISIBLE) is None
    assert (environment_of(server.stub, PIPES), environment_of(server.stub, LOGS)) == (pipes, pipes)
    assert environment_of(server.stub, VISIBLE) == "1"
    if stays:
        (repository.parent / "stays").touch()
    ended(server)
    assert (repository.parent / "quits").exists() != stays
    server.until(lambda: read_process(daemon) is None)


def test_restarted_server_starts_a_new_mps_daemon(launch: Launch, repository: Path) -> None:
    server = launch(0, "--model-repository", str(repository))
    server.until_ready()
    server.kill_stub()
    server.until_ready(2)
    first, second = daemons(server)
    server.until(lambda: read_process(first) is None)
    assert environment_of(second, PIPES) == environment_of(server.stub, PIPES)
    ended(server)


def test_existing_mps_daemon_is_used_and_left_running(
    launch: Launch, repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(PIPES, str(tmp_path))
    server = launch(0, "--model-repository", str(repository))
    server.until_ready()
    assert environment_of(server.stub, PIPES) == str(tmp_path)
    ended(server)
    assert not (tmp_path / "daemons").exists()
    assert not (tmp_path / "quits").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("refuses", f"{PROGRAM} -d: An instance of this daemon is already running"),
        *by_night(
            ("none", f"shares_by_mps: expected the program {PROGRAM} of NVIDIA's driver in PATH, got none"),
            ("elsewhere", f"{PIPES}: expected the folder of a running MPS daemon, got '/of/no/folder'"),
            ("broken", f"{OPTIONS_FILE}: expected a JSON object, got "),
        ),
    ],
)
def test_mps_daemon_start_failure_is_an_error(
    change: str, message: str, launch: Launch, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if change == "none":
        (repository.parent / "programs" / PROGRAM).unlink()
    elif change == "refuses":
        (repository.parent / "refuses").touch()
    elif change == "elsewhere":
        monkeypatch.setenv(PIPES, "/of/no/folder")
    else:
        (repository / OPTIONS_FILE).write_text("{")
    server = launch(0, "--model-repository", str(repository))
    assert server.process.wait(PATIENCE_S) == 1
    assert message in server.said
    assert not (repository.parent / "starts").exists()


def test_no_mps_daemon_runs_without_the_option(launch: Launch, repository: Path) -> None:
    RepositoryOptions().write(repository)
    server = launch(0, "--model-repository", str(repository))
    server.until_ready()
    assert environment_of(server.stub, PIPES) is None
    ended(server)
    assert not (repository.parent / "daemons").exists()
