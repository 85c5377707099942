"""Location of the environment that the set-up creates; these tests install nothing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
PYTHON = """#!/bin/sh
if [ "$1" = -m ]; then
    [ ! -L "$3" ] || echo "venv refuses links" >&2
    exit 7 # it cannot make one
fi
"""


def write_clone(clone: Path) -> None:
    """Write the files of a clone that the set-up reads."""
    (clone / "scripts").mkdir(parents=True)
    (clone / "requirements").mkdir()
    (clone / "requirements" / "embedded.txt").touch()
    (clone / "plugins" / "voice").mkdir(parents=True)
    (clone / "plugins" / "voice" / "pyproject.toml").touch()
    for name in ("scripts/setup.sh", "scripts/uv_sources.sh", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, clone / name)


def set_up(clone: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run the set-up in a clone up to the creation of the environment."""
    write_clone(clone)
    python = clone / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": "./python", "XDG_CACHE_HOME": str(cache)}
    return subprocess.run(
        [clone / "scripts" / "setup.sh"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize(("name", "is_linked"), [("a b", False), ("für Töne", True)])
def test_virtual_environment_has_an_ascii_path(tmp_path: Path, name: str, is_linked: bool) -> None:
    clone, cache = tmp_path / name, tmp_path / "cache"
    said = set_up(clone, cache)
    assert "setup: making .venv" in said.stdout, said
    assert "venv refuses links" not in said.stderr
    assert (clone / ".venv").is_symlink() == is_linked
    if is_linked:
        assert (clone / ".venv").resolve().parent == cache / "stretto"


def test_setup_reports_that_no_ascii_folder_is_available(tmp_path: Path) -> None:
    said = set_up(tmp_path / "für Töne", tmp_path / "Ü")
    assert said.returncode == 1
    assert "is ASCII; set XDG_CACHE_HOME to one that is" in said.stderr


@pytest.mark.parametrize("changed", ["pyproject.toml", "plugins/voice/pyproject.toml"])
def test_changed_entry_points_are_reinstalled(tmp_path: Path, changed: str) -> None:
    """This happens after switching branches and back. Entry points left by a wheel build are removed."""
    write_clone(tmp_path)
    uv, calls = tmp_path / ".venv" / "bin" / "uv", tmp_path / "calls"
    uv.parent.mkdir(parents=True)
    uv.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    uv.chmod(0o755)
    installed = []
    for project in ("", "", "[project]\n", ""):
        (tmp_path / "stretto.egg-info").mkdir()
        (tmp_path / changed).write_text(project)
        calls.write_text("")
        script = [tmp_path / "scripts" / "setup.sh"]
        done = subprocess.run(script, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "stretto.egg-info").exists()
        installed.append("--editable" in calls.read_text())
    assert installed == [True, False, True, True]
