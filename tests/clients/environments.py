"""Environments of third-party clients, created by uv or npm in the user's cache and kept there."""

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "stretto" / "clients"
UNREACHABLE = (
    *("dns error", "ENOTFOUND", "EAI_AGAIN", "Could not resolve", "Connection refused", "timed out"),
    *("unable to access", "Could not connect", "Could not read from remote repository"),
)


@dataclass(frozen=True)
class Environment:
    """Packages of a client, with exact versions.

    `python` is the Python version, or "node".
    `without` lists declared packages that the client does not need here, or that have no build without a GPU.
    """

    packages: tuple[str, ...]
    python: str = "3.11"
    without: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Folder of the environment, whose name depends on the packages."""
        key = hashlib.sha256(repr(self).encode()).hexdigest()[:16]
        return CACHE / key

    def make(self) -> Path:
        """Create the environment if necessary and return its folder; skip the test if no registry is reachable."""
        stamp = self.folder / "made"
        if stamp.exists():
            return self.folder
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        done = self._install_node() if self.python == "node" else self._install_python()
        if done.returncode:
            shutil.rmtree(self.folder)
            reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no reason given"
            if any(words in done.stderr for words in UNREACHABLE):
                pytest.skip(f"its packages cannot be reached: {self.packages[0]}: {reason}")
            pytest.fail(f"{' '.join(self.packages)}: {done.stderr}")
        stamp.touch()
        return self.folder

    def _install_node(self) -> subprocess.CompletedProcess[str]:
        if shutil.which("npm") is None:
            pytest.skip("npm is not installed")
        (self.folder / "package.json").write_text("{}")
        command = ["npm", "install", "--no-save", "--ignore-scripts", "--no-audit", "--no-fund", *self.packages]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)

    def _install_python(self) -> subprocess.CompletedProcess[str]:
        overrides = self.folder / "overrides.txt"
        overrides.write_text("".join(f"{name} ; python_version < '3'\n" for name in self.without))
        script = f'''
            . scripts/uv_sources.sh
            "$UV" venv --quiet --python "$PYTHON" "{self.folder}/env" &&
            "$UV" pip install --quiet --python "{self.folder}/env/bin/python" --overrides "{overrides}" "$@"
        '''
        variables = os.environ | {"UV": str(UV), "PYTHON": self._python()}
        command = ["bash", "-c", script, "install", *self.packages]
        return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)

    def _python(self) -> str:
        """Return an interpreter that uv or pyenv has, or the version number for uv to download."""
        found = subprocess.run([UV, "python", "find", self.python], capture_output=True, text=True, check=False)
        versions = sorted(Path.home().glob(f".pyenv/versions/{self.python}.*/bin/python"))
        return found.stdout.strip() or (str(versions[-1]) if versions else self.python)


@dataclass(frozen=True)
class Client:
    """A client script (its path, from this folder), with its environment and the steps that it must report."""

    environment: Environment
    script: str | Path
    steps: tuple[str, ...]
    name: str = ""

    def command(self, url: str, recording: Path, folder: Path) -> list[str]:
        """Return the command that runs the script against a gateway's URL."""
        made = self.environment.make()
        script = str(Path(__file__).parent / self.script)
        if script.endswith(".mjs"):
            return ["node", script, url, str(recording), str(folder), str(made)]
        return [str(made / "env" / "bin" / "python"), script, url, str(recording), str(folder)]
