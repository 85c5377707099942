"""Wheels for the target: which ones are missing there, fetched by pip or found in a folder, unpacked."""

import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from email.parser import Parser
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement

from benchmarks.gpu.bundling.contents import UNUSED

# Platform tags that pip is to accept: it matches them exactly.
GLIBC_MINORS = (39, 35, 34, 31, 28, 27, 26, 24, 17)


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


class Wheelhouse:
    """A folder of wheels for one Python on x86-64 Linux; pip fills it, unless `is_offline`."""

    def __init__(self, folder: Path, python: str, lock: Path | None = None, is_offline: bool = False):
        self.folder, self._python, self._is_offline = folder, python, is_offline
        lines = lock.read_text().split() if lock else []
        self._locked = dict(line.split("==") for line in lines if line.count("==") == 1)
        folder.mkdir(parents=True, exist_ok=True)

    def find(self, name: str) -> Path | None:
        """The wheel of a distribution, if it lies here."""
        found = [path for path in sorted(self.folder.glob("*.whl")) if canonical(path.name.split("-")[0]) == name]
        return found[-1] if found else None

    def get(self, requirements: Iterable[str]) -> list[Path]:
        """A wheel for each requirement; LookupError names those that could not be had."""
        missing = [each for each in requirements if self.find(canonical(Requirement(each).name)) is None]
        if missing and not self._is_offline:
            self._download(missing)
        found = {each: self.find(canonical(Requirement(each).name)) for each in requirements}
        absent = [each for each, path in found.items() if path is None]
        if absent:
            raise LookupError(f"{self.folder} holds no wheel for {absent}")
        return [path for path in found.values() if path is not None]

    def _download(self, requirements: list[str]) -> None:
        version = self._python.replace(".", "")
        platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC_MINORS]
        platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "any"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", self._python, "--implementation", "cp", "--dest", str(self.folder)]
        for abi in (f"cp{version}", "abi3", "none"):
            command += ["--abi", abi]
        for platform in platforms:
            command += ["--platform", platform]
        subprocess.run([*command, *map(self._pin, requirements)], check=True)

    def _pin(self, requirement: str) -> str:
        """The version of the lock file, where it is one that was asked for."""
        parsed = Requirement(requirement)
        locked = self._locked.get(canonical(parsed.name))
        return f"{parsed.name}=={locked}" if locked and parsed.specifier.contains(locked) else requirement


def requirements_of(wheel: Path, python: str) -> list[Requirement]:
    """What a wheel asks for on x86-64 Linux under `python`, without extras."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []
    environment = {name: str(value) for name, value in default_environment().items()}
    environment |= {"python_version": python, "python_full_version": f"{python}.0"}
    environment |= {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "extra": ""}
    parsed = [Requirement(line) for line in lines]
    return [each for each in parsed if each.marker is None or each.marker.evaluate(environment)]


def closure(roots: Iterable[str], have: frozenset[str], house: Wheelhouse, python: str) -> list[Path]:
    """The wheels of `roots` and of all they need, directly or not, but what the target has and what nobody imports."""
    wheels: dict[str, Path] = {}
    wanted = list(roots)
    while wanted:
        found = house.get(wanted)
        wheels |= {canonical(Requirement(each).name): path for each, path in zip(wanted, found, strict=True)}
        needed: dict[str, str] = {}
        for path in found:
            for requirement in requirements_of(path, python):
                name = canonical(requirement.name)
                if name not in have and name not in UNUSED and name not in wheels:
                    needed[name] = f"{requirement.name}{requirement.specifier}"
        wanted = sorted(needed.values())
    return sorted(wheels.values())


def read_have(path: Path) -> frozenset[str]:
    """The distributions that the target has: a name on each line, or what `pip freeze` prints there."""
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    names = (line.split("@")[0].split("==")[0].strip() for line in lines if line and not line.startswith("-"))
    return frozenset(canonical(name) for name in names if name)


def extract(wheel: Path, site: Path, is_wanted: Callable[[str], bool] = lambda name: True) -> int:
    """Unpack the wanted files of a wheel as an installer would (`.data/purelib`, `.data/scripts`, …); how many."""
    count = 0
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            if info.is_dir() or not is_wanted(info.filename):
                continue
            head, _, rest = info.filename.partition(".data/")
            if rest and "/" not in head:
                kind, _, rest = rest.partition("/")
                target = site / (rest if kind in ("purelib", "platlib") else f"bin/{rest}")
            else:
                target = site / info.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(info))
            if target.parent == site / "bin" or info.external_attr >> 16 & 0o100:
                target.chmod(0o755)
            count += 1
    return count
