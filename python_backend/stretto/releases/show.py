"""Command `stretto show`: facts about a published release, and the commands that download and convert it.

    stretto show             names of all releases
    stretto show NAME        a release of that name
    stretto show ./FOLDER    the release in a folder, whose family is found by its file names and small files
    stretto show OWNER/NAME  the release in a repository on the hub, found in the same way

No weights are downloaded.
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from stretto.errors import CheckpointError, CommandParser
from stretto.family.plugin import FamilyPlugin
from stretto.releases.catalogue import UNTESTED, Licence, ReleaseEntry, RepositoryFiles, entries, read_entries, resource
from stretto.releases.errors import BadArgument, ReleaseError, Unavailable
from stretto.releases.hub import Hub, RemoteListing, address
from stretto.releases.licences import licence_of
from stretto.releases.printing import plain
from stretto.releases.store import InstalledModels
from stretto.releases.target import Target, detect, parse

NAMES = "<!-- names -->"
COMMANDS = re.compile(r"<!-- commands (\S+) -->")
UNCONFIRMED = "not confirmed"
ACCESS = {"no": "open", "auto": "after consent", "manual": "on request", "unknown": UNCONFIRMED}
COMMERCIAL = {"yes": "", "no": ", not for commercial use", "conditions": ", with conditions", "unknown": ""}
WIDTH = 116  # columns of a command before it is continued in the next line
INDENT = " " * 4


def sections(families: Iterable[FamilyPlugin]) -> str:
    """Return the sections of all families that have one, sorted by title.

    Raises:
        CheckpointError: If a family's table or prose cannot be read, or the prose refers to an unknown release.
    """
    texts = []
    for family in families:
        if family.notes is not None:
            texts.append(section(resource(family.notes), read_entries(family)))
    return "\n".join(sorted(texts, key=str.lower))


def section(prose: str, entries: Sequence[ReleaseEntry]) -> str:
    """Return a family's section: its prose with the table and the commands."""
    by_name = {entry.name: entry for entry in entries}

    def commands(match: re.Match[str]) -> str:
        if match[1] not in by_name:
            raise CheckpointError(f"releases.md: expected the name of a release, got {match[1]!r}")
        return "\n".join(INDENT + line for command in manual_commands(by_name[match[1]]) for line in wrapped(command))

    if NAMES in prose:
        prose = prose.replace(NAMES, names(entries))
    return COMMANDS.sub(commands, prose).strip() + "\n"


def names(entries: Sequence[ReleaseEntry]) -> str:
    """Return the table of a family's releases."""
    rows = ["| name | repository | licence | access |", "|---|---|---|---|"]
    for entry in entries:
        alias = "".join(f", `{name}`" for name in entry.aliases)
        licence = entry.source.licence
        repository = entry.source.repository
        cells = [f"`{entry.name}`{alias}", f"`{repository}`"]
        cells += [f"[{title(licence)}]({licence.url}){COMMERCIAL[licence.commercial]}", ACCESS[entry.source.gated]]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def title(licence: Licence) -> str:
    """Return the name of a licence, or the words for an unknown one."""
    return UNCONFIRMED if licence.id == "unknown" else licence.id


def manual_commands(entry: ReleaseEntry, folder: str | None = None) -> list[list[str]]:
    """Return the commands that download and convert a release, as words that need no further quoting.

    Args:
        entry: The release.
        folder: Folder that has the release's files already; None to download them.
    """
    repo = folder or f"{entry.name}-release"
    folders = []
    commands = [] if folder else [download(entry.source, repo)]
    for companion in entry.companions:
        if companion.option is None:
            folder_name = (
                companion.source.repository.partition("/")[2]
                if companion.to is None
                else str(Path(repo) / companion.to)
            )
            folders.append(Path(folder_name))
            commands.append(download(companion.source, folder_name))
    family, *words = map(shlex.quote, entry.arguments(Path(repo), folders, Path(repo)))
    return [*commands, [f"stretto convert {family}", *options(words), f"--out {entry.name}"]]


def options(words: Iterable[str]) -> list[str]:
    """Return the words of a command line with each option joined to its value."""
    joined: list[str] = []
    for word in words:
        if word.startswith("--"):
            joined.append(word)
        else:
            joined[-1] += f" {word}"
    return joined


def download(source: RepositoryFiles, folder: str) -> list[str]:
    """Return the command that downloads a source's files to a folder."""
    words = [f"hf download {source.repository}"]
    words += [f"--revision {source.revision}"] if source.revision else []
    words.append(f"--local-dir {shlex.quote(folder)}")
    words += [f"--include {shlex.quote(pattern)}" for pattern in source.files]
    return words + [f"--exclude {shlex.quote(pattern)}" for pattern in source.exclude]


def wrapped(words: Sequence[str]) -> list[str]:
    """Return a command as lines of at most WIDTH characters, each but the last with a backslash at its end."""
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) + 3 > WIDTH:
            lines[-1] += " \\"
            lines.append(INDENT + word)
        else:
            lines[-1] += f" {word}"
    return lines


DIGITS = 7  # of a commit


def main(words: list[str]) -> int:
    """Run `stretto show` and return its exit code.

    Args:
        words: Command-line arguments after `stretto show`.
    """
    args = arguments(words)
    if args.release is None:
        releases = entries()
        print(json.dumps([asdict(release) for release in releases]) if args.json else "\n".join(map(summary, releases)))
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
    unproved = tuple(fact for fact in entry.unproved if fact != "licence")
    return replace(entry, source=replace(entry.source, licence=stated), unproved=unproved)


def summary(entry: ReleaseEntry) -> str:
    """Return one line with the name, the repository and the licence."""
    return plain(f"{entry.name:28} {entry.source.repository:52} {licence(entry.source)}")


def facts(entry: ReleaseEntry) -> Iterator[str]:
    """Yield lines with the facts about a release."""
    revision = f" @ {entry.source.revision[:DIGITS]}" if entry.source.revision else ""
    facts_by_title = {
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
    for name, value in facts_by_title.items():
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
    serving = [
        ["stretto make-repository", f"--checkpoint {entry.name}", f"--out {served}"],
        ["stretto serve", f"--model-repository {served}"],
    ]
    for command in [*manual_commands(entry, folder), *(serving if entry.serves else [])]:
        yield from map(plain, wrapped(command))


def licence(source: RepositoryFiles) -> str:
    """Return the licence of a source in words."""
    terms = source.licence
    words = title(terms) + COMMERCIAL[terms.commercial]
    return f"{words} ({terms.url})" if terms.url else words
