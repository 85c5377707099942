"""Triton starts its stubs through bash, so folders with unsupported names are reached through a link."""

import os
import sysconfig
import venv
from pathlib import Path

import pytest

import stretto_client
import stretto_contract
from benchmarks.harness import serving
from stretto.launcher.installation import IMPORT_ROOT, plain_path

CONFIG = """
name: "speech"
backend: "python"
max_batch_size: 0
input [ { name: "x" data_type: TYPE_FP32 dims: [1] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [1] } ]
"""
MODEL = """
import subprocess, sys
import stretto.errors

subprocess.run([sys.executable, "-P", "-c", "import stretto.errors"], check=True)

class TritonPythonModel:
    pass
"""


@pytest.mark.parametrize("name", ["a b", "ü", "it's", "$HOME", "a;b", "a\nb"])
def test_paths_unsafe_for_bash_are_replaced_by_links(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "inside").touch()
    plain = plain_path(folder, tmp_path, "models")
    assert plain == tmp_path / "models"
    assert (plain / "inside").exists()


def test_plain_path_is_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "model_repository-2.51+cpu"
    assert plain_path(path, tmp_path, "models") == path
    assert not (tmp_path / "models").exists()


@pytest.mark.server
@pytest.mark.nightly
def test_server_starts_in_a_folder_with_special_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "ein Ordner für Töne"
    version = folder / "models" / "speech" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODEL)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    venv.create(folder / "python", symlinks=True)  # with the packages of this environment except ours
    (packages,) = folder.glob("python/lib/python3.*/site-packages")
    (packages / "others.pth").write_text(f"import sys; sys.path.append({sysconfig.get_path('purelib')!r})")
    ours = {
        "server": IMPORT_ROOT,
        "client": Path(stretto_client.__file__).parents[1],
        "contract": Path(stretto_contract.__file__).parents[1],
    }
    for name, root in ours.items():
        (folder / name).symlink_to(root, target_is_directory=True)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(folder / name) for name in ours))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    with serving(folder / "models", folder / "python" / "bin" / "python"):
        pass
