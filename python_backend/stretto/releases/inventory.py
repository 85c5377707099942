"""Commands `stretto list` and `stretto rm`: the installed models."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from stretto.errors import CommandParser
from stretto.launcher.options import ServedModel
from stretto.launcher.running import running_servers
from stretto.releases.errors import ReleaseError, Unavailable
from stretto.releases.hub import Hub
from stretto.releases.models import InstalledModel, InstalledModels
from stretto.releases.names import entries, find, typed_name
from stretto.releases.printing import aligned, gigabytes, line, plain
from stretto.releases.show import summary
from stretto.releases.target import release_of

HEADINGS = ("NAME", "SIZE", "INSTALLED", "RELEASE", "COMMIT")


def list_models(words: list[str]) -> int:
    """Run `stretto list` and return its exit code.

    Args:
        words: Command-line arguments after `stretto list`.
    """
    flags = list_arguments(words)
    if flags.all:
        known = entries()
        print(json.dumps([asdict(each) for each in known]) if flags.json else "\n".join(map(summary, known)))
        return 0
    try:
        found = InstalledModels().all()
    except ReleaseError as error:
        return _failed("list", error)
    if flags.json:
        print(json.dumps([asdict(each.manifest) | {"folder": str(each.folder)} for each in found]))
    else:
        print(table(found))
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


def table(found: list[InstalledModel]) -> str:
    """Return a table of models; its first line has the headings."""
    rows = [HEADINGS]
    for each in found:
        manifest = each.manifest
        commit = manifest.sources[0]["commit"][:7] if manifest.sources else ""
        size = gigabytes(manifest.num_bytes) if manifest.checkpoint is None else "-"
        rows.append((manifest.name, size, manifest.date[:10], manifest.request.release, commit or "-"))
    return "\n".join(map(plain, aligned(rows)))


def remove_models(words: list[str]) -> int:
    """Run `stretto rm` and return its exit code.

    Args:
        words: Command-line arguments after `stretto rm`.
    """
    flags = remove_arguments(words)
    try:
        models = InstalledModels()
        release = release_of(flags.release)
        name = typed_name(release) or release
        entry = find(name)
        found = models.named(name if entry is None else entry.name)
        if not found:
            raise Unavailable(f"{flags.release} is not installed (stretto list)")
        for each in found:
            _check_unused(each)
        for each in found:
            models.remove(each)
            line("removed", f"{each.folder.name}: {gigabytes(each.manifest.num_bytes)}")
        if flags.sources:
            with Hub() as hub:
                line("removed", f"{gigabytes(hub.remove(models.cached_for(found)))} of the hub's cache")
    except ReleaseError as error:
        return _failed("rm", error)
    return 0


def _check_unused(model: InstalledModel) -> None:
    """Raise ReleaseError if a running server uses a model."""
    for server in running_servers():
        if server.model is not None and _is_of(server.model, model):
            raise ReleaseError(
                f"{model.manifest.name} is served by pid {server.pid}: stop it with stretto serve --stop"
            )


def _is_of(served: ServedModel, model: InstalledModel) -> bool:
    """Return True if a served model is an installed one. Another folder of models may have one of the same key."""
    if served.key != model.manifest.key or not served.repository:
        return served.key == model.manifest.key
    repository = Path(served.repository)
    return repository.is_relative_to(model.folder.resolve()) or repository.is_relative_to(
        model.private_folder.resolve()
    )


def _failed(command: str, error: ReleaseError) -> int:
    print(f"stretto {command}: {plain(str(error))}", file=sys.stderr)
    return error.status
