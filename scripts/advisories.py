"""Check lock files against a copy of PyPA's advisory database, for hosts that cannot reach OSV.

    python -m scripts.advisories advisory-database requirements/*.txt

The first argument is a checkout of github.com/pypa/advisory-database. The exit status is 1 if a locked version is
affected and `ACCEPTED` does not list the advisory. `scripts/nightly.sh` runs this if $ADVISORIES names a checkout.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from packaging.utils import canonicalize_name
from packaging.version import Version

# Advisories that do not apply to this project, with the reason.
ACCEPTED: Mapping[str, str] = {}
PINNED = re.compile(r"^([\w.-]+)==([^\s;\\]+)", re.MULTILINE)


def locked_versions(lock: Path) -> dict[str, Version]:
    """Return the pinned version of each package of a lock file, by normalised name."""
    pinned = PINNED.findall(lock.read_text())
    # Advisories do not know local versions such as `+cpu`.
    return {canonicalize_name(name): Version(Version(version).public) for name, version in pinned}


def is_affected(version: Version, affected: Mapping[str, Any]) -> bool:
    """Return True if a version is in a range or in the list of versions of an OSV record."""
    if str(version) in map(str, affected.get("versions", ())):
        return True
    return any(
        _is_in_range(version, affected_range["events"])
        for affected_range in affected.get("ranges", ())
        if affected_range["type"] == "ECOSYSTEM"
    )


def _is_in_range(version: Version, events: list[dict[str, Any]]) -> bool:
    is_inside = False
    for event_type, value in sorted(
        ((k, Version(str(v))) for e in events for k, v in e.items()), key=lambda event: event[1]
    ):
        if event_type == "introduced" and version >= value:
            is_inside = True
        elif (event_type == "fixed" and version >= value) or (event_type == "last_affected" and version > value):
            is_inside = False
    return is_inside


def advisories(database: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yield the records about a package that have not been withdrawn."""
    for path in sorted((database / "vulns" / name).glob("*.yaml")):
        record = yaml.safe_load(path.read_text())
        if "withdrawn" not in record:
            yield record


def main() -> int:
    """Print the advisories that affect locked versions; return the exit status."""
    database, *locks = map(Path, sys.argv[1:])
    if not (database / "vulns").is_dir():
        sys.exit(f"advisories: expected a checkout of PyPA's advisory database, got {database}")
    users = defaultdict[tuple[str, Version], list[str]](list)
    for lock in locks:
        for pinned in locked_versions(lock).items():
            users[pinned].append(lock.name)
    count = 0
    for (name, version), files in sorted(users.items()):
        for record in advisories(database, name):
            if record["id"] in ACCEPTED:
                continue
            if any(is_affected(version, affected) for affected in record["affected"]):
                count += 1
                print(f"{name} {version} ({', '.join(files)}): {record['id']} {', '.join(record.get('aliases', ()))}")
    print(f"advisories: {count} for {len(users)} locked versions in {len(locks)} files")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
