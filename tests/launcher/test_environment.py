"""Environment variables that the launcher adds for the server."""

import os
import sys
from pathlib import Path

import pytest

from stretto.launcher import installation
from stretto.launcher.faults import Launch
from stretto.launcher.installation import IMPORT_ROOT, Installation, server_environment

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
    assert made["STRETTO_DEPARTURES_FILE"] == f"{folder}/disconnects"
    assert made["VLLM_RPC_BASE_PATH"] == folder
    assert made["HOME"] == "/home/x"
    assert made["MALLOC_MMAP_THRESHOLD_"] == made["MALLOC_TRIM_THRESHOLD_"] == "4194304"
    assert made["MALLOC_ARENA_MAX"] == "2"


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
