"""Environment variables that the launcher adds for the server."""

import os
import pwd
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from stretto.launcher import installation
from stretto.launcher.installation import (
    IMPORT_ROOT,
    Installation,
    LaunchError,
    cache_folder,
    home_folder,
    server_environment,
    state_folder,
)
from stretto.launcher.launch import Launch
from tests.patience import PATIENCE_S
from tests.tiers import by_night

BASE = {"PATH": "/usr/bin", "LD_LIBRARY_PATH": "/opt/lib", "HOME": "/home/x", "LC_ALL": "C"}


def test_server_environment_prefers_this_python_and_its_libraries() -> None:
    wheel = Installation(Path("/w/tritonserver"), (), (Path("/w/libs"), Path("/py/lib")))
    made = server_environment(wheel, Launch("17_ab", 0, Path("/dev/shm")), BASE)
    assert made["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]
    assert made["LD_LIBRARY_PATH"] == "/w/libs:/py/lib:/opt/lib"
    assert made["PYTHONPATH"] == str(IMPORT_ROOT)
    assert (made["LC_ALL"], made["PYTHONUTF8"]) == ("C.UTF-8", "1")
    folder = "/dev/shm/stretto_launch_17_ab.run"
    assert made["STRETTO_LAUNCH_ID"] == "17_ab"
    assert made["STRETTO_DRAIN_FILE"] == f"{folder}/draining"
    assert made["STRETTO_DISCONNECTS_FILE"] == f"{folder}/disconnects"
    assert made["VLLM_RPC_BASE_PATH"] == folder
    assert made["HOME"] == "/home/x"
    assert made["MALLOC_MMAP_THRESHOLD_"] == made["MALLOC_TRIM_THRESHOLD_"] == "4194304"
    assert made["MALLOC_ARENA_MAX"] == "2"
    assert made["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("name", ["__pycache__", "other"])
def test_missing_bytecode_is_written_to_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setattr(installation, "PACKAGE", tmp_path)
    monkeypatch.setattr(installation.os, "access", lambda path, mode: False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    launch = Launch("1", 0, Path("/d"))
    made = server_environment(Installation(Path("/opt/x")), launch, BASE)
    assert made.get("PYTHONPYCACHEPREFIX") == (None if name == "__pycache__" else "/cache/stretto/bytecode")
    own = server_environment(
        Installation(Path("/opt/x")), Launch("1", 0, Path("/d")), BASE | {"PYTHONPYCACHEPREFIX": "/own"}
    )
    assert own["PYTHONPYCACHEPREFIX"] == "/own"


def test_container_library_path_is_unchanged() -> None:
    made = server_environment(Installation(Path("/opt/x")), Launch("1", 0, Path("/d")), BASE)
    assert made["LD_LIBRARY_PATH"] == "/opt/lib"


def test_import_root_contains_the_package() -> None:
    assert (IMPORT_ROOT / "stretto" / "__init__.py").exists()


def become(monkeypatch: pytest.MonkeyPatch, home: str | None, entry: str | None, state: str | None) -> None:
    """Set HOME, the home folder in the user database, and both XDG variables; None for what is missing."""

    def find(uid: int) -> SimpleNamespace:
        if entry is None:
            raise KeyError(f"getpwuid(): uid not found: {uid}")
        return SimpleNamespace(pw_dir=entry)

    monkeypatch.setattr(pwd, "getpwuid", find)
    for name, value in {"HOME": home, "XDG_STATE_HOME": state, "XDG_CACHE_HOME": state}.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("home", "entry", "named", "state", "cache"),
    [
        ("/home/x", "/home/y", None, "/home/x/.local/state/stretto", "/home/x/.cache/stretto"),
        ("/home/x", None, "/s", "/s/stretto", "/s/stretto"),
        ("/home/x", None, "s", "/home/x/.local/state/stretto", "/home/x/.cache/stretto"),
        (None, "/home/y", None, "/home/y/.local/state/stretto", "/home/y/.cache/stretto"),
        ("", "/home/y", "", "/home/y/.local/state/stretto", "/home/y/.cache/stretto"),
        ("x", "/home/y", None, "/home/y/.local/state/stretto", "/home/y/.cache/stretto"),
        (None, None, "/s", "/s/stretto", "/s/stretto"),
    ],
)
def test_folders_of_an_installed_package(
    monkeypatch: pytest.MonkeyPatch, home: str | None, entry: str | None, named: str | None, state: str, cache: str
) -> None:
    monkeypatch.setattr(installation, "clone", lambda: None)
    become(monkeypatch, home, entry, named)
    assert (str(state_folder()), str(cache_folder())) == (state, cache)


@pytest.mark.parametrize(("home", "entry"), [(None, None), ("", None), ("x", None), (None, "")])
def test_user_without_a_home_folder_must_name_one(
    monkeypatch: pytest.MonkeyPatch, home: str | None, entry: str | None
) -> None:
    monkeypatch.setattr(installation, "clone", lambda: None)
    become(monkeypatch, home, entry, None)
    assert home_folder() is None
    for folder, variable in ((state_folder, "XDG_STATE_HOME"), (cache_folder, "XDG_CACHE_HOME")):
        with pytest.raises(LaunchError, match=rf"^user \d+ has no home folder: set HOME or {variable} to the path of"):
            folder()
    launch = Launch("1", 0, Path("/d"))
    assert server_environment(Installation(Path("/opt/x")), launch, {})["HOME"] == "/d/stretto_launch_1.run"


def test_clone_needs_no_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(installation, "clone", lambda: tmp_path)
    become(monkeypatch, None, None, None)
    assert (state_folder(), cache_folder()) == (tmp_path / ".stretto", tmp_path / ".stretto" / "cache")
    launch = Launch("1", 0, Path("/d"))
    assert server_environment(Installation(Path("/opt/x")), launch, {})["HOME"] == str(tmp_path / ".stretto")


# The command line of an installed package, for a user without an entry in the user database.
STRANGER = """
import pwd, sys
def find(uid):
    raise KeyError(uid)
pwd.getpwuid = find
from stretto.launcher import installation
installation.clone = lambda: None
from stretto.cli import main
sys.exit(main(sys.argv[1:]))
"""


HOMELESS = f"user {os.getuid()} has no home folder: set HOME or XDG_STATE_HOME to the path of a folder\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("serve", 1, f"[serve] {HOMELESS}"),
        *by_night(
            ("speak a", 1, f"error: {HOMELESS}"),
            ("serve --help", 0, "usage: stretto serve"),
            ("serve --status", 1, f"[serve] {HOMELESS}"),
            ("serve --status --pid-file /nowhere/pid", 3, '{"state": "stopped"}\n'),
            ("voices --help", 0, "usage: stretto voices"),
            ("voices list --voices /nowhere/voices", 0, ""),
            ("voices list", 2, "stretto voices: --voices: expected a folder, because STRETTO_VOICES is not set, got"),
        ),
    ],
)
def test_commands_of_a_user_without_a_home_folder(words: str, status: int, said: str) -> None:
    environment = {"PATH": os.environ["PATH"]}
    line = [sys.executable, "-c", STRANGER, *words.split()]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    output = done.stdout + done.stderr
    assert (done.returncode, "Traceback" in output) == (status, False)
    assert output.startswith(said)
    assert said == "" or not said.endswith("\n") or output.count("\n") == 1
