"""The built and installed package: its contents, and that it runs from its installation."""

import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from vllm import envs

from scripts.same_bytes import EPOCH, normalize
from setup import PLUGINS, entry_points
from tests.ports import free_row

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
# Paths in the wheel by path in the tree.
PLACES = {
    "python_backend/stretto": "stretto",
    "contract/stretto_contract": "stretto_contract",
    "client/stretto_client": "stretto_client",
    "gateway/stretto_gateway": "stretto_gateway",
    "model_repository": "stretto/model_repository",
} | {f"{folder}/{name}": name for name, folder in PLUGINS.items()}
EPOCH_S = 1_700_000_000
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
SHOW_FOLDERS = (
    "import stretto, stretto.launcher.installation as f; print(stretto.__file__, f.clone(), f.state_folder())"
)


def build(kind: str, tree: Path, out: Path) -> Path:
    """Build a distribution of a tree with setuptools, without network or isolation, and return it."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(out)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True, timeout=300)
    (made,) = out.iterdir()
    return made


def build_both(folder: Path) -> tuple[Path, Path]:
    """Build an sdist from a copy of this tree with typical clutter, and a wheel from that sdist."""
    tree = folder / "tree"
    for name in ("python_backend", "contract", "client", "gateway", "plugins", "model_repository"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.onnx"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, tree / name)
    (tree / "model_repository/preprocessor/1/__pycache__").mkdir()
    (tree / "model_repository/preprocessor/1/__pycache__/model.cpython-311.pyc").touch()
    (tree / "model_repository/language_model/1/checkpoint/codec.onnx").touch()
    for name in ("sdist", "wheel"):
        (folder / name).mkdir()
    sdist = build("sdist", tree, folder / "sdist")
    normalize(sdist, EPOCH_S)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return sdist, build("wheel", unpacked, folder / "wheel")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the sdist and the wheel of a release."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(EPOCH, str(EPOCH_S))
        return build_both(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel(built: tuple[Path, Path]) -> Path:
    return built[1]


@pytest.mark.nightly
def test_builds_are_reproducible(built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EPOCH, str(EPOCH_S))
    again = build_both(tmp_path)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in built]


def files_of_the_tree() -> dict[str, Path]:
    """Return the files of the tree by their names in the wheel."""
    listed = {}
    for folder, place in PLACES.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".onnx":
                listed[f"{place}/{path.relative_to(ROOT / folder)}"] = path
    return listed


def test_wheel_contains_exactly_the_package_and_bundled_model_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        expected = files_of_the_tree()
        assert packed == set(expected)
        assert "stretto/model_repository/speech/1/.gitkeep" in packed, "Triton wants the version's folder"
        for name, path in expected.items():
            assert archive.read(name) == path.read_bytes(), name


def test_wheel_has_the_console_script_and_all_entry_points(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/entry_points.txt"))
        points = configparser.ConfigParser()
        points.read_string(archive.read(name).decode())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    expected = {"console_scripts": project["scripts"]} | entry_points()
    assert {section: dict(points[section]) for section in points.sections()} == expected
    groups = {"vllm.general_plugins", "triton.backends", "stretto_gateway.routes"}
    groups |= {f"stretto.{name}" for name in ("families", "codecs", "markers")}
    assert set(expected) == {"console_scripts", *groups}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel in an environment that shares all other packages with this one; return its `bin` folder."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run([*install, str(wheel)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def run(installed: Path, home: Path, *command: str, port: int = 8000) -> "subprocess.CompletedProcess[str]":
    """Run a command of the environment as a user with no settings except the port.

    vLLM's cache of our models' properties is kept, because the first start would otherwise import vLLM again.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "STRETTO_", "PYTHON"))}
    environment = kept | {"HOME": str(home), "STRETTO_PORT": str(port), "VLLM_CACHE_ROOT": envs.VLLM_CACHE_ROOT}
    line = [str(installed / command[0]), *command[1:]]
    return subprocess.run(line, cwd=home, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.nightly
def test_installed_package_writes_to_the_user_state_folder(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "python", "-c", SHOW_FOLDERS)
    found, clone, state = done.stdout.split()
    assert Path(found).is_relative_to(installed.parent)
    assert (clone, state) == ("None", str(tmp_path / ".local/state/stretto"))


@pytest.mark.nightly
def test_installed_commands_run(installed: Path, tmp_path: Path) -> None:
    assert "speak, transcribe, talk, chat" in run(installed, tmp_path, "stretto", "--help").stdout
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run(installed, tmp_path, "stretto", "--version").stdout == f"stretto {version}\n"
    status = run(installed, tmp_path, "stretto", "serve", "--status")
    assert (status.returncode, status.stdout, status.stderr) == (3, '{"state": "stopped"}\n', "")
    assert not list(tmp_path.iterdir()), "asking for the state has left something behind"


@pytest.mark.server
# in addition to its contents, and the output of a start with an empty state folder (test_readme.py)
@pytest.mark.nightly
def test_installed_package_speaks_from_an_empty_directory(installed: Path, tmp_path: Path) -> None:
    port, out = free_row(3), ("--out", "anywhere.wav")
    try:
        done = run(installed, tmp_path, "stretto", "speak", "It speaks from anywhere.", *out, port=port)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "anywhere.wav").stat().st_size > 16_000, "less than half a second of 16-bit speech"
    finally:
        stopped = run(installed, tmp_path, "stretto", "serve", "--stop", port=port)
    assert stopped.stderr == "[serve] stopped\n"
