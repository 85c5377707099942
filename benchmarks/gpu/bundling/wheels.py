"""Wheels for the target host, which uv resolves, pip downloads, and this module unpacks."""

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

# Platform tags for pip, which only accepts exact matches.
GLIBC_MINORS = (39, 35, 34, 31, 28, 27, 26, 24, 17)


class Wheelhouse:
    """Folder of wheels for one Python version on x86-64 Linux, filled from the package index unless `is_offline`.

    Args:
        lock: File with preferred versions, which are used if they are compatible.
    """

    def __init__(self, folder: Path, python: str, lock: Path | None = None, is_offline: bool = False):
        self.folder = folder
        self._python = python
        self._lock = lock
        self._is_offline = is_offline
        folder.mkdir(parents=True, exist_ok=True)

    def closure(self, roots: Iterable[str], left_out: frozenset[str]) -> list[Path]:
        """Return the wheels of `roots` and of all their dependencies, excluding the names in `left_out`."""
        pins = self._resolve(list(roots), left_out)
        missing = [pin for pin in pins if self._find(Requirement(pin)) is None]
        if missing and not self._is_offline:
            self._download(missing)
        wheels = [self._find(Requirement(pin)) for pin in pins]
        absent = [pin for pin, wheel in zip(pins, wheels, strict=True) if wheel is None]
        if absent:
            raise LookupError(f"{self.folder} holds no wheel for {absent}")
        return sorted(wheel for wheel in wheels if wheel is not None)

    def _resolve(self, roots: list[str], left_out: frozenset[str]) -> list[str]:
        with tempfile.TemporaryDirectory() as scratch:
            wanted, overrides, pinned = (Path(scratch, name) for name in ("roots", "overrides", "pinned"))
            wanted.write_text("\n".join(roots))
            overrides.write_text("\n".join(f"{name} ; sys_platform == 'never'" for name in sorted(left_out)))
            pinned.write_text("" if self._lock is None else self._lock.read_text())  # uv keeps compatible versions
            command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-config", "--no-header"]
            command += ["--no-annotate", "--only-binary", ":all:"]
            command += ["--python-version", self._python, "--python-platform", "x86_64-manylinux_2_35"]
            command += ["--override", str(overrides), "--output-file", str(pinned), str(wanted)]
            if self._is_offline:
                command += ["--offline", "--no-index", "--find-links", str(self.folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise LookupError(" ".join(done.stderr.split()))
            return [line for line in pinned.read_text().splitlines() if "sys_platform == 'never'" not in line]

    def _find(self, pin: Requirement) -> Path | None:
        for path in self.folder.glob("*.whl"):
            name, version, _, _ = parse_wheel_filename(path.name)
            if name == canonicalize_name(pin.name) and pin.specifier.contains(version, prereleases=True):
                return path
        return None

    def _download(self, pins: list[str]) -> None:
        version = self._python.replace(".", "")
        platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC_MINORS]
        platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "any"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", self._python, "--implementation", "cp", "--dest", str(self.folder)]
        for abi in (f"cp{version}", "abi3", "none"):
            command += ["--abi", abi]
        for platform in platforms:
            command += ["--platform", platform]
        subprocess.run([*command, *pins], check=True)


def name_of(requirement: str) -> str:
    """Return the normalised name of a requirement's distribution."""
    return canonicalize_name(Requirement(requirement).name)


def read_have(path: Path) -> frozenset[str]:
    """Read the names of the target's distributions from a list, one per line, or from `pip freeze` output."""
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    names = (re.split(r"[@=]", line)[0].strip() for line in lines if line and not line.startswith("-"))
    return frozenset(canonicalize_name(name) for name in names if name)


def extract(
    wheel: Path,
    site: Path,
    is_wanted: Callable[[str], bool] = lambda name: True,
    change: Callable[[str, bytes], bytes] = lambda name, data: data,
) -> int:
    """Unpack files of a wheel as an installer would (`.data/purelib`, `.data/scripts`, …); return their number."""
    count = 0
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            if info.is_dir() or not is_wanted(info.filename):
                continue
            head, _, inner = info.filename.partition(".data/")
            if inner and "/" not in head:
                scheme, _, inner = inner.partition("/")
                target = site / (inner if scheme in ("purelib", "platlib") else f"bin/{inner}")
            else:
                target = site / info.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(change(info.filename, archive.read(info)))
            if target.parent == site / "bin" or info.external_attr >> 16 & 0o100:
                target.chmod(0o755)
            count += 1
    return count
