"""Packing and installing work with a folder of made-up wheels, without network and pip."""

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu.bundling.__main__ import pack, parser

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[4]


def make_wheel(house: Path, name: str, version: str, files: dict[str, str], requires: tuple[str, ...] = ()) -> Path:
    house.mkdir(exist_ok=True)
    path = house / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    metadata = "".join(f"Requires-Dist: {each}\n" for each in requires)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        for file, text in files.items():
            archive.writestr(file, text)
    return path


@pytest.fixture
def house(tmp_path: Path) -> Path:
    house = tmp_path / "house"
    vllm = {
        "vllm/__init__.py": "import needed",
        "vllm/_C_stable_libtorch.abi3.so": "kernels",
        "vllm/_moe_C_stable_libtorch.abi3.so": "experts",
        "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so": "two",
        "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so": "three",
        "vllm-0.32.0.dist-info/entry_points.txt": "[console_scripts]\nvllm = vllm:main\n",
    }
    requires = ("torch==2.13.0", "needed>=1", "mistral_common", "old ; python_version < '3.12'", "extra ; extra == 'x'")
    make_wheel(house, "vllm", "0.32.0", vllm, requires)
    make_wheel(
        house, "needed", "1.5", {"needed.py": "import deeper", "needed-1.5.data/scripts/tool": "#!"}, ("deeper",)
    )
    make_wheel(house, "deeper", "2.0", {"deeper/__init__.py": ""}, ("needed", "numpy"))
    for name in ("soundfile", "soxr", "num2words", "anyascii", "tritonclient", "sentencex"):
        make_wheel(house, name, "1.0", {f"{name}.py": ""}, ("docopt>=0.6",) if name == "num2words" else ())
    return house


@pytest.fixture
def package(tmp_path: Path) -> Path:
    entry = "[vllm.general_plugins]\nstretto = stretto.engine.plugin:register\n"
    files = {"python_backend/stretto/__init__.py": "", "stretto-0.1.dist-info/entry_points.txt": entry}
    return make_wheel(tmp_path / "own", "stretto", "0.1", files)


def arguments(tmp_path: Path, house: Path, *more: str) -> argparse.Namespace:
    line = ["pack", "--out", str(tmp_path / "out"), "--wheelhouse", str(house), "--offline", "--no-source", *more]
    return parser().parse_args(line)


def run_install(tmp_path: Path, *names: str) -> subprocess.CompletedProcess[str]:
    """Install as on the host, in another process that has no installed packages."""
    files = [str(tmp_path / "out" / name) for name in names]
    command = [sys.executable, "-S", "-m", "benchmarks.gpu.bundling", "install", "--into", str(tmp_path / "there")]
    return subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True)


def test_packed_bundle_is_importable_after_installation(tmp_path: Path, house: Path, package: Path) -> None:
    contents = pack(arguments(tmp_path, house, "--part-mb", "0.0004"), package)
    assert [name.split("-")[0] for name in contents["wheels"]] == [
        "anyascii", "deeper", "needed", "num2words", "sentencex", "soundfile", "soxr", "tritonclient", "vllm", "stretto"
    ]  # fmt: skip
    parts = sorted(path.name for path in (tmp_path / "out").glob("part-*"))
    assert len(parts) > 1
    first = run_install(tmp_path, "manifest.json", *parts[:1])
    assert (first.returncode, first.stdout.split()[:3]) == (3, ["still", "missing:", parts[1]])
    done = run_install(tmp_path, *parts[1:])
    assert done.returncode == 0, done.stderr
    again = run_install(tmp_path)
    assert again.stdout == done.stdout
    check = (
        "import vllm; from importlib.metadata import entry_points as e; print(*e(group='vllm.general_plugins').names)"
    )
    line = f'{done.stdout.strip()}; {sys.executable} -c "{check}"; test -x {tmp_path}/there/bundle/site/bin/tool'
    shell = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert "stretto" in shell.stdout.split(), shell.stderr
    assert shell.returncode == 0, "the tool cannot be run"
