"""Objects that installed packages register by entry points: model families and codecs.

stretto families    lists them with the packages that they come from
"""

import argparse
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from stretto.command_line import CommandParser
from stretto.errors import CheckpointError

FAMILIES, CODECS = "stretto.families", "stretto.codecs"  # entry point groups
OWN = "stretto"  # distribution of the built-in families and codecs, which no other package replaces


@dataclass(frozen=True)
class Installed:
    """Registered object.

    Attributes:
        name: Name under which it is registered.
        distribution: Name of the package that registers it.
        version: Version of the package.
        entry_point: The entry point.
    """

    name: str
    distribution: str
    version: str
    entry_point: EntryPoint

    def load(self) -> Any:
        """Return the object; raise CheckpointError if it cannot be imported."""
        try:
            return self.entry_point.load()
        except Exception as error:  # a family whose module fails must not affect the others
            raise CheckpointError(f"{self.name}: cannot import {self.entry_point.value}: {error!r}") from error


def installed(group: str) -> list[Installed]:
    """Return the objects of an entry point group, sorted by name; a name of several packages occurs several times."""
    found: dict[tuple[str, str], Installed] = {}
    for each in entry_points(group=group):
        package = (each.dist.name, each.dist.version) if each.dist else ("unknown", "unknown")
        found.setdefault((each.name, each.value), Installed(each.name, *package, each))
    own = {each.name for each in found.values() if each.distribution == OWN}
    return sorted(
        (each for each in found.values() if each.distribution == OWN or each.name not in own),
        key=lambda each: (each.name, each.entry_point.value),
    )


def find(group: str, name: str) -> Installed | None:
    """Return the object registered as `name` in a group, or None.

    Raises:
        CheckpointError: If several packages register the name.
    """
    found = [each for each in installed(group) if each.name == name]
    if len(found) > 1:
        values = [f"{each.entry_point.value} ({each.distribution} {each.version})" for each in found]
        raise CheckpointError(f"{group}: {name}: expected one installed package, got {', '.join(values)}")
    return found[0] if found else None


def names(group: str) -> str:
    """Return the names registered in a group, for error messages."""
    known = sorted({each.name for each in installed(group)})
    return ", ".join(known) or f"none; the package {OWN} is not installed as it is now (scripts/setup.sh installs it)"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line, which has no arguments."""
    return CommandParser(prog="stretto families", description="List model families and codecs.").parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Print a line per family and codec; return 1 if a family cannot be imported, or a name is registered twice."""
    arguments(words)
    is_sound = True
    for group, kind in ((FAMILIES, "family"), (CODECS, "codec")):
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
