"""Command `stretto ps`: the running servers of this user, and the health of a container that runs one."""

import argparse
import http.client
import json
from dataclasses import asdict
from typing import Any

from stretto.errors import CommandParser
from stretto.launcher.processes import ProcessSnapshot
from stretto.launcher.running import RunningServer, memory_bytes, num_requests, running_servers
from stretto.releases.models import InstalledModels, installing
from stretto.releases.printing import aligned

HEADINGS = ("MODEL", "PORTS", "STATE", "MEMORY", "REQUESTS", "PID")
STALLED_S = 600.0  # without progress; a slow machine imports torch, or hashes a large file, in a few minutes
PROBE_S = 5.0  # the proxy waits as long for Triton


def main(words: list[str]) -> int:
    """Run `stretto ps` and return its exit code.

    Args:
        words: Command-line arguments after `stretto ps`.
    """
    flags = arguments(words)
    servers = running_servers()
    if flags.health:
        return health(servers)
    described = [description(server) for server in servers]
    print(json.dumps(described) if flags.json else table(described))
    return 0


def arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(prog="stretto ps", description=__doc__)
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


def table(described: list[dict[str, Any]]) -> str:
    """Return a table for people; its first line has the headings."""
    rows = [HEADINGS]
    for each in described:
        ports = ",".join(f"{name} {port}" for name, port in each["ports"].items())
        state = f"{each['state']} ({each['reason']})" if each["reason"] else each["state"]
        name = "-" if each["model"] is None else each["model"]["name"]
        memory = f"{each['memory_bytes'] / 1e9:.1f} GB"
        rows.append((name, ports, state, memory, str(each["requests"]), str(each["pid"])))
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
