"""Where the bundled model lies, and where the launcher may write: never where the package is installed."""

import os
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
IMPORT_ROOT = PACKAGE.parent  # what `import stretto` searches


def clone() -> Path | None:
    """The clone that this package lies in; None where it is installed."""
    tree = IMPORT_ROOT.parent
    return tree if (tree / "pyproject.toml").is_file() and (tree / "model_repository").is_dir() else None


def bundled_repository() -> Path:
    """The model repository of the bundled model: at the top of a clone, beside the code of an installed package."""
    return (clone() or PACKAGE) / "model_repository"


def state_folder() -> Path:
    """The pid files and logs of servers: `.stretto` of a clone, the user's state folder of an installed package."""
    tree = clone()
    if tree is not None:
        return tree / ".stretto"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "stretto"


def cache_folder() -> Path:
    """The user's cache folder for this project."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stretto"
