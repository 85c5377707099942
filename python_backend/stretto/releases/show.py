"""Command `stretto show`: facts about a published release, and the commands that download and convert it.

    stretto show             names of all releases
    stretto show NAME        a release of that name
    stretto show ./FOLDER    the release in a folder, whose family is found by its file names and small files
    stretto show OWNER/NAME  the release in a repository on the hub, found in the same way

No weights are downloaded.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace

from stretto.errors import CommandParser
from stretto.releases.detect import detect
from stretto.releases.entry import UNTESTED, ReleaseEntry, RepositoryFiles
from stretto.releases.errors import BadArgument, ReleaseError, Unavailable
from stretto.releases.hub import Hub, RemoteListing, address
from stretto.releases.licences import licence_of
from stretto.releases.models import InstalledModels
from stretto.releases.names import entries
from stretto.releases.page import ACCESS, COMMERCIAL, manual_commands, title, wrapped
from stretto.releases.printing import plain
from stretto.releases.target import Target, parse

DIGITS = 7  # of a commit


def main(words: list[str]) -> int:
    """Run `stretto show` and return its exit code.

    Args:
        words: Command-line arguments after `stretto show`.
    """
    args = arguments(words)
    if args.release is None:
        known = entries()
        print(json.dumps([asdict(each) for each in known]) if args.json else "\n".join(map(summary, known)))
        return 0
    try:
        target = _target(args.release)
        word = args.release.partition("#")[0]
        folder = None
        if target.folder is not None:
            folder = word if "/" in word else str(target.folder)
        entry = target.entry or detected(target, folder)
    except ReleaseError as error:
        print(f"stretto show: {plain(str(error))}", file=sys.stderr)
        return error.status
    print(json.dumps(asdict(entry)) if args.json else "\n".join([*facts(entry), "", *commands(entry, folder)]))
    return 0


def _target(text: str) -> Target:
    """Return the release that a word of the command line names, or that an installed model of this name came from."""
    try:
        return parse(text)
    except (BadArgument, Unavailable):
        model = InstalledModels().listed(text)
        if model is None:
            raise
        return parse(model.manifest.request.release)


def arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="stretto show", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "release", nargs="?", help="name of a release, OWNER/NAME, or path of a folder; default: list all names"
    )
    parser.add_argument("--json", action="store_true", help="print everything that is known as JSON")
    return parser.parse_args(words)


def detected(target: Target, folder: str | None) -> ReleaseEntry:
    """Return the release in a folder, or in a repository on the hub, which is asked for file names and small files.

    Args:
        target: The folder or the repository.
        folder: The folder as the user wrote it, or None.
    """
    if target.listing is not None:
        return detect(target.listing, folder, target.part)
    assert target.repository is not None
    with Hub() as hub:
        snapshot = hub.snapshot(target.repository, None)
        entry = detect(RemoteListing(hub, snapshot), target.repository, target.part)
    stated = licence_of(entry.source, snapshot.licence, address())
    if stated == entry.source.licence:
        return entry
    unproved = tuple(each for each in entry.unproved if each != "licence")
    return replace(entry, source=replace(entry.source, licence=stated), unproved=unproved)


def summary(entry: ReleaseEntry) -> str:
    """Return one line with the name, the repository and the licence."""
    return plain(f"{entry.name:28} {entry.source.repository:52} {licence(entry.source)}")


def facts(entry: ReleaseEntry) -> Iterator[str]:
    """Yield lines with the facts about a release."""
    revision = f" @ {entry.source.revision[:DIGITS]}" if entry.source.revision else ""
    known = {
        "name": ", ".join((entry.name, *entry.aliases)),
        "family": entry.family,
        "repository": entry.source.repository + revision,
        "licence": licence(entry.source),
        "access": ACCESS[entry.source.gated],
        "checked": entry.checked or UNTESTED,
        "voice": entry.default_voice or "",
        "languages": ", ".join(entry.languages),
        "needs": ", ".join(entry.needs),
        "unproved": ", ".join(entry.unproved),
        "server": "" if entry.serves else "cannot serve it; it can be converted only",
    }
    for name, value in known.items():
        if value:
            yield plain(f"{name:12} {value}")
    for fact in entry.source.licence.facts:
        yield plain(f"{'':12} {fact}")


def commands(entry: ReleaseEntry, folder: str | None) -> Iterator[str]:
    """Yield the lines of the commands that install and serve a release, on the CPU.

    Args:
        entry: The release.
        folder: Folder that has the release's files already; None to download them.
    """
    served = f"{entry.name}-served"
    more = [
        ["stretto make-repository", f"--checkpoint {entry.name}", f"--out {served}"],
        ["stretto serve", f"--model-repository {served}"],
    ]
    for command in [*manual_commands(entry, folder), *(more if entry.serves else [])]:
        yield from map(plain, wrapped(command))


def licence(source: RepositoryFiles) -> str:
    """Return the licence of a source in words."""
    found = source.licence
    words = title(found) + COMMERCIAL[found.commercial]
    return f"{words} ({found.url})" if found.url else words
