"""No file of the current folder is executed, and the folder may have been removed."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stretto import cli
from tests.hostile_folder import executed, without_current_folder, write_hostile_folder, write_module
from tests.patience import PATIENCE_S, until
from tests.ports import free_ports
from tests.recordings import SENTENCE
from tests.tiers import by_night

STRETTO = str(Path(sys.executable).with_name("stretto"))
# Commands that end by themselves; those of the day import the most.
COMMANDS = [
    ["run", "--help"],
    ["verify", str(SENTENCE)],
    ["speak", "Hello.", "--server", "localhost:1"],
]
COMMANDS_BY_NIGHT = [
    *([command, "--help"] for command in ("talk", "chat", "gateway", "pronunciations", "rm", "make-repository")),
    ["families"],
    ["show", "csm"],
    ["serve", "--model", "acme/nothing", "--offline"],
    ["list"],
    ["list", "--all"],
    ["ps"],
    ["show"],
    ["serve", "--status"],
    ["serve", "--stop"],
    ["voices", "list"],
    ["transcribe", str(SENTENCE), "--server", "localhost:1"],
]
IN_REMOVED_FOLDER = 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@"'


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    return write_hostile_folder(tmp_path / "hostile")


def environment(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a user with folders of their own, in which Python has no settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("STRETTO_", "PYTHON", "HF_"))}
    own = {"STRETTO_MODELS": str(tmp_path / "models"), "STRETTO_PORT": str(free_ports(1)[0])}
    return without_current_folder(kept | own)


def run(command: list[str], folder: Path, variables: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize("commands", [COMMANDS, *by_night(COMMANDS_BY_NIGHT)])
def test_no_command_executes_a_file_of_the_current_folder(
    commands: list[list[str]], hostile: Path, tmp_path: Path
) -> None:
    variables = environment(tmp_path)
    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(lambda words: run([STRETTO, *words], hostile, variables), commands))
    assert executed(hostile) == ""
    assert not [each.stderr for each in done if "Traceback" in each.stderr]


def test_removed_current_folder_is_an_error(tmp_path: Path) -> None:
    """Without one, libraries fail in ways of their own: MKL ends the process."""
    shell = ["bash", "-c", IN_REMOVED_FOLDER, str(tmp_path / "removed"), STRETTO, "convert", "--help"]
    done = run(shell, tmp_path, environment(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "stretto: the current folder was removed: change to another one\n"


def test_gateway_executes_no_file_of_the_current_folder(hostile: Path, tmp_path: Path) -> None:
    (hostile / "keys").write_text("a key of the user\n")
    (port,) = free_ports(1)
    words = ["gateway", "--port", str(port), "--keys", "keys", "--voices", "own_voices"]
    with (tmp_path / "log").open("w") as log:
        gateway = subprocess.Popen([STRETTO, *words], cwd=hostile, env=environment(tmp_path), stderr=log)
    try:
        until(lambda: gateway.poll() is not None or "listening at" in (tmp_path / "log").read_text())
    finally:
        gateway.send_signal(signal.SIGTERM)
    assert gateway.wait(PATIENCE_S) == 0, (tmp_path / "log").read_text()
    assert executed(hostile) == ""
    assert (hostile / "own_voices").is_dir(), "a path on the command line belongs to the current folder"


@pytest.mark.parametrize("python_path", ["{other}::{other}", *by_night(None, "", ":", "{other}:")])
def test_empty_entries_of_the_search_path_name_no_folder(python_path: str | None, tmp_path: Path) -> None:
    """Python itself imports some modules before any of ours, so not all names are tried."""
    other, folder = tmp_path / "other", tmp_path / "hostile"
    other.mkdir()
    for name in ("random", "queue", "string", "logging", "numpy", "torch", "stretto_client", "sentencex"):
        write_module(folder, name)
    variables = environment(tmp_path)
    if python_path is not None:
        variables["PYTHONPATH"] = python_path.format(other=other)
    for command in ([STRETTO], [sys.executable, "-m", "stretto"]):
        done = run([*command, "show"], folder, variables)
        assert executed(folder) == ""
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("python_path", "kept"),
    [
        ("/opt/a", "/opt/a"),
        (":/opt/a::", "/opt/a"),
        ("own:/opt/a", "{folder}/own:/opt/a"),
        (".", "{folder}"),
        ("../b:", "{parent}/b"),
        (":", ""),
    ],
)
def test_named_entries_of_the_search_path_are_kept(
    python_path: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", python_path)
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.setattr(sys, "path", [str(tmp_path), "/lib"])
    cli.exclude_current_folder(str(tmp_path))
    assert os.environ["PYTHONPATH"] == kept.format(folder=tmp_path, parent=tmp_path.parent)
    assert os.environ["PYTHONSAFEPATH"] == "1"
    assert "/lib" in sys.path
