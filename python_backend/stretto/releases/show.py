"""Commands `stretto show`, `list`, `rm` and `ps`: published releases, installed models and running servers."""

import argparse
import http.client
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from stretto.errors import CheckpointError, CommandParser
from stretto.family.plugin import FamilyPlugin
from stretto.launcher.options import ServedModel
from stretto.launcher.processes import ProcessSnapshot
from stretto.launcher.running import RunningServer, memory_bytes, num_requests, running_servers
from stretto.releases.catalogue import (
    UNTESTED,
    Licence,
    ReleaseEntry,
    RepositoryFiles,
    entries,
    find,
    read_entries,
    resource,
    typed_name,
)
from stretto.releases.hub import Hub, RemoteListing, address
from stretto.releases.licences import licence_of
from stretto.releases.messages import BadArgument, ReleaseError, Unavailable, aligned, failed, gigabytes, line, plain
from stretto.releases.store import InstalledModel, InstalledModels, installing
from stretto.releases.target import Target, detect, parse, release_of

SHOW = """Command `stretto show`: facts about a published release, and the commands that download and convert it.

    stretto show             names of all releases
    stretto show NAME        a release of that name
    stretto show ./FOLDER    the release in a folder, whose family is found by its file names and small files
    stretto show OWNER/NAME  the release in a repository on the hub, found in the same way

No weights are downloaded.
"""
NAMES = "<!-- names -->"
COMMANDS = re.compile(r"<!-- commands (\S+) -->")
UNCONFIRMED = "not confirmed"
ACCESS = {"no": "open", "auto": "after consent", "manual": "on request", "unknown": UNCONFIRMED}
COMMERCIAL = {"yes": "", "no": ", not for commercial use", "conditions": ", with conditions", "unknown": ""}
WIDTH = 116  # columns of a command before it is continued in the next line
INDENT = " " * 4


def sections(families: Iterable[FamilyPlugin]) -> str:
    """Return the sections of all families that have one, sorted by title."""
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
    """Return the name of a licence, or UNCONFIRMED for an unknown one."""
    return UNCONFIRMED if licence.id == "unknown" else licence.id


def manual_commands(entry: ReleaseEntry, folder: str | None = None) -> list[list[str]]:
    """Return the commands that convert a release and, without `folder`, download it, as words that are quoted."""
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
    """Return a command as lines of at most WIDTH characters that end with a backslash, except the last one."""
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) + 3 > WIDTH:
            lines[-1] += " \\"
            lines.append(INDENT + word)
        else:
            lines[-1] += f" {word}"
    return lines


DIGITS = 7  # number of characters shown of a commit


def main(words: list[str]) -> int:
    """Run `stretto show` and return its exit code."""
    args = arguments(words)
    if args.release is None:
        print_names(args.json)
        return 0
    try:
        target = _target(args.release)
        word = args.release.partition("#")[0]
        folder = None
        if target.folder is not None:
            folder = word if "/" in word else str(target.folder)
        entry = target.entry or detected(target, folder)
    except ReleaseError as error:
        return failed("show", error)
    print(json.dumps(asdict(entry)) if args.json else "\n".join([*facts(entry), "", *commands(entry, folder)]))
    return 0


def _target(text: str) -> Target:
    """Return the release that a command-line word names, or from which an installed model of this name was made."""
    try:
        return parse(text)
    except (BadArgument, Unavailable):
        model = InstalledModels().listed(text)
        if model is None:
            raise
        return parse(model.manifest.request.release)


def arguments(words: list[str]) -> argparse.Namespace:
    parser = CommandParser(prog="stretto show", description=SHOW, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "release", nargs="?", help="name of a release, OWNER/NAME, or path of a folder; default: list all names"
    )
    parser.add_argument("--json", action="store_true", help="print everything that is known as JSON")
    return parser.parse_args(words)


def detected(target: Target, folder: str | None) -> ReleaseEntry:
    """Return the release in a folder, or in a repository on the hub, from file names and small files."""
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


def print_names(is_json: bool) -> None:
    """Print the names of all published releases."""
    releases = entries()
    print(json.dumps([asdict(release) for release in releases]) if is_json else "\n".join(map(summary, releases)))


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
    """Yield the lines of the commands that install and serve a release on the CPU (`manual_commands`)."""
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


HEADINGS = ("NAME", "SIZE", "INSTALLED", "RELEASE", "COMMIT")


def list_models(words: list[str]) -> int:
    """Run `stretto list` and return its exit code."""
    flags = list_arguments(words)
    if flags.all:
        print_names(flags.json)
        return 0
    try:
        models = InstalledModels().all()
    except ReleaseError as error:
        return failed("list", error)
    if flags.json:
        print(json.dumps([asdict(model.manifest) | {"folder": str(model.folder)} for model in models]))
    else:
        print(table(models))
    return 0


def list_arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line of `stretto list`."""
    parser = CommandParser(prog="stretto list", description="List the installed models.")
    parser.add_argument("--all", action="store_true", help="list the names of all published releases instead")
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    return parser.parse_args(words)


def remove_arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line of `stretto rm`."""
    parser = CommandParser(prog="stretto rm", description="Remove an installed model.")
    parser.add_argument("release", help="its name, or the repository or folder that was installed")
    about = "also remove its files in the hub's cache, except those of other installed models"
    parser.add_argument("--sources", action="store_true", help=about)
    return parser.parse_args(words)


def table(models: list[InstalledModel]) -> str:
    """Return a table of models with headings."""
    rows = [HEADINGS]
    for model in models:
        manifest = model.manifest
        commit = manifest.sources[0]["commit"][:7] if manifest.sources else ""
        size = gigabytes(manifest.num_bytes) if manifest.checkpoint is None else "-"
        rows.append((manifest.name, size, manifest.date[:10], manifest.request.release, commit or "-"))
    return "\n".join(map(plain, aligned(rows)))


def remove_models(words: list[str]) -> int:
    """Run `stretto rm` and return its exit code."""
    flags = remove_arguments(words)
    try:
        models = InstalledModels()
        release = release_of(flags.release)
        name = typed_name(release) or release
        entry = find(name)
        removed = models.named(name if entry is None else entry.name)
        if not removed:
            raise Unavailable(f"{flags.release} is not installed (stretto list)")
        for model in removed:
            _check_unused(model)
        for model in removed:
            models.remove(model)
            line("removed", f"{model.folder.name}: {gigabytes(model.manifest.num_bytes)}")
        if flags.sources:
            with Hub() as hub:
                line("removed", f"{gigabytes(hub.remove(models.cached_for(removed)))} of the hub's cache")
    except ReleaseError as error:
        return failed("rm", error)
    return 0


def _check_unused(model: InstalledModel) -> None:
    """Raise ReleaseError if a running server uses a model."""
    for server in running_servers():
        if server.model is not None and _is_of(server.model, model):
            raise ReleaseError(
                f"{model.manifest.name} is served by pid {server.pid}: stop it with stretto serve --stop"
            )


def _is_of(served: ServedModel, model: InstalledModel) -> bool:
    """Return True if a served model is this installed model, not one with the same key in another folder."""
    if served.key != model.manifest.key or not served.repository:
        return served.key == model.manifest.key
    repository = Path(served.repository)
    return repository.is_relative_to(model.folder.resolve()) or repository.is_relative_to(
        model.private_folder.resolve()
    )


SERVERS = "Command `stretto ps`: the running servers of this user, and the health of a container that runs one."
SERVER_HEADINGS = ("MODEL", "PORTS", "STATE", "MEMORY", "REQUESTS", "PID")
STALLED_S = 600.0  # without progress; a slow machine imports torch, or hashes a large file, in a few minutes
PROBE_S = 5.0  # the proxy waits as long for Triton


def list_servers(words: list[str]) -> int:
    """Run `stretto ps` and return its exit code."""
    flags = server_arguments(words)
    servers = running_servers()
    if flags.health:
        return health(servers)
    described = [description(server) for server in servers]
    print(json.dumps(described) if flags.json else server_table(described))
    return 0


def server_arguments(words: list[str]) -> argparse.Namespace:
    parser = CommandParser(prog="stretto ps", description=SERVERS)
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print a JSON array with one object for each server")
    about = "print what is not ready; exit code 1 unless all servers are ready, or a model is being installed"
    output.add_argument("--health", action="store_true", help=about)
    return parser.parse_args(words)


def description(server: RunningServer) -> dict[str, Any]:
    """Return the facts about a server, for JSON."""
    processes: list[ProcessSnapshot] = server.processes()
    return {
        "model": None if server.model is None else asdict(server.model),
        "ports": server.ports,
        "state": server.state,
        "reason": server.reason,
        "memory_bytes": memory_bytes([server.pid, *(process.pid for process in processes)]),
        "requests": num_requests(processes),
        "pid": server.pid,
        "pid_file": str(server.pid_file),
        "log": server.log,
    }


def server_table(described: list[dict[str, Any]]) -> str:
    """Return a table of servers with headings, from `description`."""
    rows = [SERVER_HEADINGS]
    for server in described:
        ports = ",".join(f"{name} {port}" for name, port in server["ports"].items())
        state = f"{server['state']} ({server['reason']})" if server["reason"] else server["state"]
        name = "-" if server["model"] is None else server["model"]["name"]
        memory = f"{server['memory_bytes'] / 1e9:.1f} GB"
        rows.append((name, ports, state, memory, str(server["requests"]), str(server["pid"])))
    return "\n".join(aligned(rows))


def health(servers: list[RunningServer]) -> int:
    """Print why this machine's servers are not ready; return 0 if they are, otherwise 1.

    If there is no server, an installation that makes progress is healthy, too.
    """
    if not servers and (ages_s := installing(InstalledModels())):
        for name, age_s in ages_s.items():
            print(f"{name} is being installed" + (f", without progress for {age_s:.0f} s" if age_s > STALLED_S else ""))
        return int(min(ages_s.values()) > STALLED_S)
    faults = [fault for server in servers if (fault := _fault(server))] if servers else ["no server is running"]
    print("\n".join(faults or ["ready"]))
    return int(bool(faults))


def _fault(server: RunningServer) -> str:
    """Return why a server is not ready; empty if it is."""
    name = "the server" if server.model is None else server.model.name
    if server.state != "ready":
        return f"{name} is {server.state}" + (f": {server.reason}" if server.reason else "")
    port = server.ports["http"]
    connection = http.client.HTTPConnection("localhost", port, timeout=PROBE_S)
    try:
        connection.request("GET", "/v2/health/ready")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{name}: port {port}: {error}"
    finally:
        connection.close()
    return "" if status == 200 else f"{name}: port {port}: status {status}"
