"""Commands `stretto list`, `stretto rm` and `stretto ps`: the installed models and the running servers."""

import argparse
import http.client
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stretto.errors import CommandParser
from stretto.launcher.options import ServedModel
from stretto.launcher.processes import ProcessSnapshot
from stretto.launcher.running import RunningServer, memory_bytes, num_requests, running_servers
from stretto.releases.catalogue import entries, find, typed_name
from stretto.releases.errors import ReleaseError, Unavailable
from stretto.releases.hub import Hub
from stretto.releases.printing import aligned, gigabytes, line, plain
from stretto.releases.show import summary
from stretto.releases.store import InstalledModel, InstalledModels, installing
from stretto.releases.target import release_of

HEADINGS = ("NAME", "SIZE", "INSTALLED", "RELEASE", "COMMIT")


def list_models(words: list[str]) -> int:
    """Run `stretto list` and return its exit code.

    Args:
        words: Command-line arguments after `stretto list`.
    """
    flags = list_arguments(words)
    if flags.all:
        releases = entries()
        print(
            json.dumps([asdict(release) for release in releases]) if flags.json else "\n".join(map(summary, releases))
        )
        return 0
    try:
        models = InstalledModels().all()
    except ReleaseError as error:
        return _failed("list", error)
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
    """Return a table of models; its first line has the headings."""
    rows = [HEADINGS]
    for model in models:
        manifest = model.manifest
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


SERVERS = "Command `stretto ps`: the running servers of this user, and the health of a container that runs one."
SERVER_HEADINGS = ("MODEL", "PORTS", "STATE", "MEMORY", "REQUESTS", "PID")
STALLED_S = 600.0  # without progress; a slow machine imports torch, or hashes a large file, in a few minutes
PROBE_S = 5.0  # the proxy waits as long for Triton


def list_servers(words: list[str]) -> int:
    """Run `stretto ps` and return its exit code.

    Args:
        words: Command-line arguments after `stretto ps`.
    """
    flags = server_arguments(words)
    servers = running_servers()
    if flags.health:
        return health(servers)
    described = [description(server) for server in servers]
    print(json.dumps(described) if flags.json else server_table(described))
    return 0


def server_arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line."""
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
    """Return a table for people; its first line has the headings."""
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

    Without a server, also an installation that makes progress is healthy.
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
