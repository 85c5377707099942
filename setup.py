"""Package data and entry points that pyproject.toml cannot express.

The package contains the plug-ins' packages, and registers their families and codecs. Data consists of the model
repository, the families' tables of releases, the gateway's web page and py.typed.
"""

import tomllib
from pathlib import Path
from typing import Any

from setuptools import Distribution, find_packages, setup

ROOT = Path(__file__).parent
DATA = "stretto.model_repository"
FOLDERS = {"stretto": "python_backend"} | {f"stretto_{name}": name for name in ("contract", "client", "gateway")}
PLUGINS = {path.name: path.parent.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("plugins/*/stretto_*"))}


def entry_points() -> dict[str, dict[str, str]]:
    """Return the values of all entry points, keyed by group and name; each stands in one pyproject.toml."""
    groups: dict[str, dict[str, str]] = {}
    for folder in (".", *PLUGINS.values()):
        project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
        for group, entries in project["entry-points"].items():
            groups.setdefault(group, {}).update(entries)
    return groups


class WithPlugins(Distribution):
    """Distribution with the entry points of this package and of all plug-ins."""

    def parse_config_files(self, *args: Any, **kwargs: Any) -> None:
        """Read pyproject.toml, then add the entry points that it does not have."""
        super().parse_config_files(*args, **kwargs)
        for group, entries in entry_points().items():
            self.entry_points[group] = [f"{name} = {value}" for name, value in entries.items()]


if __name__ == "__main__":
    packages = FOLDERS | PLUGINS
    setup(
        distclass=WithPlugins,
        packages=[*(found for folder in packages.values() for found in find_packages(folder)), DATA],
        package_dir={name: f"{folder}/{name}" for name, folder in packages.items()} | {DATA: "model_repository"},
        package_data={
            "stretto": ["py.typed"],
            "stretto.families": ["*/releases.json", "*/releases.md", "*/pace.json", "*/config/*"],
            "stretto_contract": ["py.typed"],
            "stretto_client": ["py.typed"],
            "stretto_gateway": ["py.typed", "static/*"],
            DATA: [
                "*/config.pbtxt",
                "*/1/model.py",
                "*/1/engine.json",
                "*/1/.gitkeep",  # Triton requires the version folder, even if it is empty
                "*/1/checkpoint/*.json",
                "*/1/checkpoint/*.safetensors",
            ],
        }
        | {name: ["**/releases.json", "**/releases.md", "**/config/*"] for name in PLUGINS},
    )
