"""Model families, codecs and markers that installed packages register as entry points, and `stretto families`."""

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
    """Entry point of a model family, a codec or a marker."""

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
    """Return the entry points of a group, sorted by name. A name that several packages register occurs several times.

    A package that is installed while this process runs is not found until `sys.path` changes, because the result is
    cached.
    """
    return list(_installed(group, tuple(sys.path)))


@lru_cache(maxsize=16)
def _installed(group: str, path: tuple[str, ...]) -> tuple[Installed, ...]:
    """Return the entry points of a group, cached for each `path`, because reading all metadata takes about 20 ms."""
    registered: dict[tuple[str, str], Installed] = {}
    for entry_point in entry_points(group=group):
        package = (entry_point.dist.name, entry_point.dist.version) if entry_point.dist else ("unknown", "unknown")
        registered.setdefault((entry_point.name, entry_point.value), Installed(entry_point.name, *package, entry_point))
    own_names = {entry.name for entry in registered.values() if entry.distribution == OWN}
    wanted = [entry for entry in registered.values() if entry.distribution == OWN or entry.name not in own_names]
    return tuple(sorted(wanted, key=lambda entry: (entry.name, entry.entry_point.value)))


def find(group: str, name: str) -> Installed | None:
    """Return the entry point called `name` in a group, or None; raise CheckpointError if there are several."""
    matches = [entry for entry in installed(group) if entry.name == name]
    if len(matches) > 1:
        values = [f"{entry.entry_point.value} ({entry.distribution} {entry.version})" for entry in matches]
        raise CheckpointError(f"{group}: {name}: expected one installed package, got {', '.join(values)}")
    return matches[0] if matches else None


def names(group: str) -> str:
    """Return the registered names of a group as text for error messages."""
    registered = sorted({entry.name for entry in installed(group)})
    return (
        ", ".join(registered) or f"none; the package {OWN} is not installed, or is out of date (run scripts/setup.sh)"
    )


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line, whose only option is --help."""
    return CommandParser(prog="stretto families", description="List model families, codecs and markers.").parse_args(
        words
    )


def main(words: list[str] | None = None) -> int:
    """Print all families, codecs and markers; return 1 if a family cannot be imported or a name is registered twice."""
    arguments(words)
    is_sound = True
    for group, noun in ((FAMILIES, "family"), (CODECS, "codec"), (MARKERS, "marker")):
        for entry in installed(group):
            print(f"{noun:7} {entry.name:20} {entry.distribution} {entry.version}")
            try:
                find(group, entry.name)
                if group == FAMILIES:  # codecs import torch
                    entry.load()
            except CheckpointError as error:
                print(f"stretto families: {error}", file=sys.stderr)
                is_sound = False
    return 0 if is_sound else 1
