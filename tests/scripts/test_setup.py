"""Location of the environment that the set-up makes; nothing is installed here."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = """#!/bin/sh
if [ "$1" = -m ]; then
    [ ! -L "$3" ] || echo "venv refuses links" >&2
    exit 7 # it cannot make one
fi
"""


def set_up(clone: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run the set-up in a clone until it makes the environment."""
    (clone / "scripts").mkdir(parents=True)
    (clone / "requirements").mkdir()
    (clone / "requirements" / "embedded.txt").touch()
    for name in ("scripts/setup.sh", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, clone / name)
    python = clone / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": "./python", "XDG_CACHE_HOME": str(cache)}
    return subprocess.run(
        [clone / "scripts" / "setup.sh"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(("name", "is_linked"), [("a b", False), ("für Töne", True)])
def test_the_environment_has_an_ascii_path(tmp_path: Path, name: str, is_linked: bool) -> None:
    clone, cache = tmp_path / name, tmp_path / "cache"
    said = set_up(clone, cache)
    assert "setup: making .venv" in said.stdout, said
    assert "venv refuses links" not in said.stderr
    assert (clone / ".venv").is_symlink() == is_linked
    if is_linked:
        assert (clone / ".venv").resolve().parent == cache / "stretto"


def test_without_any_folder_that_is_ascii_the_set_up_says_so(tmp_path: Path) -> None:
    said = set_up(tmp_path / "für Töne", tmp_path / "Ü")
    assert said.returncode == 1
    assert "is ASCII; set XDG_CACHE_HOME to one that is" in said.stderr
