"""Names of published releases, from the `releases.json` of all installed families."""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from stretto.entry_points import FAMILIES, OWN, installed
from stretto.errors import CheckpointError, shown
from stretto.family.plugin import FamilyPlugin, plugin
from stretto.releases.entry import NAME, ReleaseEntry, read
from stretto.releases.errors import BadArgument, Unavailable

logger = logging.getLogger(__name__)

MAX_NEAREST = 3
LATEST = ":latest"  # tag of registries of other programs; a release has no tags


def entries() -> tuple[ReleaseEntry, ...]:
    """Return the releases of all installed families, sorted by name.

    An entry of another package is left out if its name is also one of this package's entries or families, or if two
    packages use the name. A family whose table is invalid is logged and skipped.
    """
    own: list[ReleaseEntry] = []
    others: list[ReleaseEntry] = []
    for is_own, found in _plugins():
        try:
            (own if is_own else others).extend(entry for entry in read_entries(found) if entry.family == found.name)
        except CheckpointError as error:
            logger.warning("%s", error)
    taken = {name for each in own for name in (each.name, *each.aliases)}
    taken |= {each.name.replace("_", "-") for each in installed(FAMILIES) if each.distribution == OWN}
    uses = Counter(name for other in others for name in (other.name, *other.aliases))
    accepted = []
    for each in others:
        odd = [name for name in (each.name, *each.aliases) if name in taken or uses[name] > 1]
        if odd:
            logger.warning("%s: %s: another package has a release of this name", each.family, odd[0])
        else:
            accepted.append(each)
    return tuple(sorted([*own, *accepted], key=lambda each: each.name))


def find(name: str) -> ReleaseEntry | None:
    """Return the release with this name or alias, or None."""
    return next((entry for entry in entries() if name in (entry.name, *entry.aliases)), None)


def typed_name(text: str) -> str:
    """Return the name that a user has typed, maybe with capitals, spaces or underscores; empty if it cannot be one."""
    name = re.sub(r"[\s_:]+", "-", text.strip().lower().removesuffix(LATEST))
    return name if NAME.fullmatch(name) else ""


def named(text: str) -> ReleaseEntry:
    """Return the release of this name, which may have capitals, spaces or underscores.

    Raises:
        BadArgument: If `text` cannot be a name.
        Unavailable: If there is no such release.
    """
    name = typed_name(text)
    entry = find(name)
    if entry is not None:
        return entry
    similar = nearest(name or text)
    hint = f"; did you mean {', '.join(similar)}?" if similar else ""
    if not NAME.fullmatch(text):
        raise BadArgument(f"expected a name, OWNER/NAME or an existing folder, got {text!r}{hint}")
    folder = f"; for the folder, write ./{text}" if Path(text).is_dir() else ""
    raise Unavailable(f"{text}: no release of this name{hint}{folder} (stretto list --all)")


def nearest(text: str) -> list[str]:
    """Return up to three names that resemble `text`, or whose repositories have the same owner."""
    known = entries()
    names = get_close_matches(
        text.lower(), [name for each in known for name in (each.name, *each.aliases)], MAX_NEAREST
    )
    owner, slash, last = text.rpartition("/")
    if slash:
        names = get_close_matches(last.lower(), [each.name for each in known], MAX_NEAREST)
        names += [each.name for each in known if each.source.repository.split("/")[0].lower() == owner.lower()]
    return list(dict.fromkeys(names))[:MAX_NEAREST]


def read_entries(found: FamilyPlugin) -> tuple[ReleaseEntry, ...]:
    """Return all entries of a family's `releases.json`, which families may share; none if it has no such file.

    Raises:
        CheckpointError: If the file is missing or invalid.
    """
    return () if found.releases is None else _read_file(found.releases)


def resource(reference: str) -> str:
    """Return the text of package data, given as "package:file"; raise CheckpointError if it cannot be read."""
    package, _, name = reference.partition(":")
    try:
        return files(package).joinpath(name).read_text(encoding="utf-8")
    except (ImportError, OSError, UnicodeDecodeError, TypeError) as error:
        raise CheckpointError(f"{reference}: expected package data, got {error!r}") from error


@cache
def _read_file(reference: str) -> tuple[ReleaseEntry, ...]:
    try:
        record: Any = json.loads(resource(reference))
    except ValueError as error:
        raise CheckpointError(f"{reference}: expected JSON, got {error}") from error
    if not isinstance(record, dict) or record.keys() != {"releases"} or not isinstance(record["releases"], list):
        raise CheckpointError(f"{reference}: expected an object with the list releases, got {shown(record)}")
    return tuple(read(each, reference) for each in record["releases"])


def _plugins() -> Iterator[tuple[bool, FamilyPlugin]]:
    """Yield the plug-in of each family that can be imported, with True for those of this package."""
    for each in installed(FAMILIES):
        try:
            found = plugin(each.name)
        except CheckpointError as error:
            logger.warning("%s", error)
            continue
        if found is not None:
            yield each.distribution == OWN, found
