"""Hide the plug-ins: their packages, and their families and codecs, as if only the core were installed.

Importing this module hides them from the process; `pytest -p tests.without_plugins` also skips each test file that
needs one of them, directly or through another file of this repository.
"""

import importlib.metadata
import re
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.metadata import EntryPoints
from pathlib import Path
from types import ModuleType

from scripts.plugins import imported_names

ROOT = Path(__file__).parents[1]
HIDDEN = {path.name for path in ROOT.glob("plugins/*/stretto_*")} | {"plugins"}
all_entry_points = importlib.metadata.entry_points


class NothingFound(MetaPathFinder):
    """Finder that refuses the plug-ins' packages."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {fullname!r}: it is hidden", name=fullname)


def core_entry_points(**chosen: str) -> EntryPoints:
    """Return the entry points that `importlib.metadata.entry_points` finds outside the plug-ins."""
    if not chosen:  # the library returns an object of another type
        return all_entry_points()
    return EntryPoints(point for point in all_entry_points(**chosen) if re.split("[.:]", point.value)[0] not in HIDDEN)


def needs_plugins(path: Path) -> bool:
    """Return True if a file imports a plug-in, or a file of tests, benchmarks or the lab that does."""
    seen = set[Path]()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        names = imported_names(current)
        if any(name.partition(".")[0] in HIDDEN for name in names):
            return True
        files = [(ROOT / name.replace(".", "/")).with_suffix(".py") for name in names]
        waiting += [file for file in files if file.is_file()]
    return False


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Skip a test file that needs a plug-in."""
    is_test = collection_path.suffix == ".py" and collection_path.name.startswith("test_")
    return True if is_test and needs_plugins(collection_path) else None


sys.meta_path.insert(0, NothingFound())
importlib.metadata.entry_points = core_entry_points
