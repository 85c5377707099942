"""Ray nodes on this machine, and their processes."""

from contextlib import suppress
from typing import Any

import psutil

from stretto_ray.app import SERVER

LAUNCHERS_FLAG = "--pid-file"


def add_node(cluster: Any, num_cpus: int, **arguments: Any) -> None:
    """Add a node to a cluster; retry if its agents start more slowly than Ray's fixed timeout.

    Must be called in the main thread, because it installs signal handlers.
    """
    for attempt in range(5):
        try:
            cluster.add_node(num_cpus=num_cpus, **arguments)
            return
        except Exception as error:
            if attempt == 4 or "timed out during startup" not in str(error):
                raise


def launchers(cluster: Any) -> set[psutil.Process]:
    """Return the launchers of all servers."""
    everywhere = [process for node in cluster.list_all_nodes() for process in processes_on(node)]
    children = [child for process in everywhere if has([process], SERVER) for child in process.children()]
    return {child for child in children if LAUNCHERS_FLAG in title(child)}


def processes_on(node: Any) -> list[psutil.Process]:
    """Return the processes of a Ray node, its raylet first.

    They are found by parent, because the servers' launchers have their own sessions.
    """
    raylet = next(
        process_info.process
        for name, all_of in node.all_processes.items()
        if "raylet" in name
        for process_info in all_of
    )
    if raylet.poll() is not None:
        return []
    return [psutil.Process(raylet.pid), *psutil.Process(raylet.pid).children(recursive=True)]


def has(processes: list[psutil.Process], deployment: str) -> bool:
    """Return True if a replica of the deployment is among the processes, by the titles that Ray sets."""
    return any(deployment in title(process) for process in processes)


def title(process: psutil.Process) -> str:
    """Return a process's command line; empty if the process has ended."""
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""
