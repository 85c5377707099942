"""Sections on the families in the site's docs/published_models.md, from their tables of releases and their prose.

A family's `releases.md` is prose in which `<!-- names -->` stands for the table of its releases, and
`<!-- commands NAME -->` for the commands that download and convert a release by hand. `scripts/docs_site.py` adds the
sections to the page.
"""

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from stretto.errors import CheckpointError
from stretto.family.plugin import FamilyPlugin
from stretto.releases.entry import Licence, ReleaseEntry, RepositoryFiles
from stretto.releases.names import read_entries, resource

NAMES = "<!-- names -->"
COMMANDS = re.compile(r"<!-- commands (\S+) -->")
UNCONFIRMED = "not confirmed"
ACCESS = {"no": "open", "auto": "after consent", "manual": "on request", "unknown": UNCONFIRMED}
COMMERCIAL = {"yes": "", "no": ", not for commercial use", "conditions": ", with conditions", "unknown": ""}
WIDTH = 116  # columns of a command before it is continued in the next line
INDENT = " " * 4


def sections(found: Iterable[FamilyPlugin]) -> str:
    """Return the sections of all families that have one, sorted by title.

    Raises:
        CheckpointError: If a family's table or prose cannot be read, or the prose refers to an unknown release.
    """
    texts = []
    for each in found:
        if each.notes is not None:
            texts.append(section(resource(each.notes), read_entries(each)))
    return "\n".join(sorted(texts, key=str.lower))


def section(prose: str, entries: Sequence[ReleaseEntry]) -> str:
    """Return a family's section: its prose with the table and the commands."""
    known = {entry.name: entry for entry in entries}

    def commands(match: re.Match[str]) -> str:
        if match[1] not in known:
            raise CheckpointError(f"releases.md: expected the name of a release, got {match[1]!r}")
        return "\n".join(INDENT + line for command in manual_commands(known[match[1]]) for line in wrapped(command))

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
            place = (
                companion.source.repository.partition("/")[2]
                if companion.to is None
                else str(Path(repo) / companion.to)
            )
            folders.append(Path(place))
            commands.append(download(companion.source, place))
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
