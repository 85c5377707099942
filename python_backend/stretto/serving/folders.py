"""Locations of the bundled model repository and of writable folders.

The launcher never writes into an installed package.
"""

import os
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
IMPORT_ROOT = PACKAGE.parent  # on sys.path for `import stretto`


def clone() -> Path | None:
    """Return the git clone that contains this package, or None if the package is installed."""
    tree = IMPORT_ROOT.parent
    return tree if (tree / "pyproject.toml").is_file() and (tree / "model_repository").is_dir() else None


def bundled_repository() -> Path:
    """Return the bundled model repository: at the top of a clone, or inside an installed package."""
    return (clone() or PACKAGE) / "model_repository"


def state_folder() -> Path:
    """Return the folder of pid files and logs: `.stretto` in a clone, or the user's state folder."""
    tree = clone()
    if tree is not None:
        return tree / ".stretto"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "stretto"


def cache_folder() -> Path:
    """Return the user's cache folder for this project."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stretto"
