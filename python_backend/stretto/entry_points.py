"""Model families, codecs and markers that installed packages register as entry points.

`stretto families` lists the entry points with their packages.
"""

import argparse
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from stretto.errors import CheckpointError, CommandParser

# entry point groups
FAMILIES = "stretto.families"
CODECS = "stretto.codecs"
MARKERS = "stretto.markers"
OWN = "stretto"  # package of the built-in entry points, which other packages cannot replace


@dataclass(frozen=True)
class Installed:
    """Entry point of a model family, a codec or a marker.

    Attributes:
        name: Name of the family, codec or marker.
        distribution: Name of the package that registers it.
        version: Version of the package.
        entry_point: The entry point, which has not been loaded yet.
    """

    name: str
    distribution: str
    version: str
    entry_point: EntryPoint

    def load(self) -> Any:
        """Import and return the registered object; raise CheckpointError if that fails."""
        try:
            return self.entry_point.load()
        except Exception as error:  # a family that cannot be imported must not affect the others
            raise CheckpointError(f"{self.name}: cannot import {self.entry_point.value}: {error!r}") from error


def installed(group: str) -> list[Installed]:
    """Return the entry points of a group, sorted by name.

    If several packages register the same name, it occurs several times. A package that is installed while this process
    runs is not found until `sys.path` changes, because the result is cached.
    """
    return list(_installed(group, tuple(sys.path)))


@lru_cache(maxsize=16)
def _installed(group: str, path: tuple[str, ...]) -> tuple[Installed, ...]:
    """Return the entry points of a group.

    The result is cached for each `path`, because reading all metadata takes about 20 ms.
    """
    found: dict[tuple[str, str], Installed] = {}
    for each in entry_points(group=group):
        package = (each.dist.name, each.dist.version) if each.dist else ("unknown", "unknown")
        found.setdefault((each.name, each.value), Installed(each.name, *package, each))
    own = {each.name for each in found.values() if each.distribution == OWN}
    wanted = [each for each in found.values() if each.distribution == OWN or each.name not in own]
    return tuple(sorted(wanted, key=lambda each: (each.name, each.entry_point.value)))


def find(group: str, name: str) -> Installed | None:
    """Return the entry point called `name` in a group, or None.

    Raises:
        CheckpointError: If several packages register the name.
    """
    found = [each for each in installed(group) if each.name == name]
    if len(found) > 1:
        values = [f"{each.entry_point.value} ({each.distribution} {each.version})" for each in found]
        raise CheckpointError(f"{group}: {name}: expected one installed package, got {', '.join(values)}")
    return found[0] if found else None


def names(group: str) -> str:
    """Return the registered names of a group as text for error messages."""
    known = sorted({each.name for each in installed(group)})
    return ", ".join(known) or f"none; the package {OWN} is not installed, or is out of date (run scripts/setup.sh)"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line, whose only option is --help."""
    return CommandParser(prog="stretto families", description="List model families, codecs and markers.").parse_args(
        words
    )


def main(words: list[str] | None = None) -> int:
    """Print a line for each family, codec and marker.

    Returns:
        0, or 1 if a family cannot be imported or a name is registered twice.
    """
    arguments(words)
    is_sound = True
    for group, kind in ((FAMILIES, "family"), (CODECS, "codec"), (MARKERS, "marker")):
        for each in installed(group):
            print(f"{kind:7} {each.name:20} {each.distribution} {each.version}")
            try:
                find(group, each.name)
                if group == FAMILIES:  # codecs import torch
                    each.load()
            except CheckpointError as error:
                print(f"stretto families: {error}", file=sys.stderr)
                is_sound = False
    return 0 if is_sound else 1
