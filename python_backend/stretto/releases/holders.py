"""Processes that hold the memory of this machine or of a GPU, for the message that a release does not fit."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from stretto.launcher.processes import GONE, PROC
from stretto.launcher.running import RunningServer, memory_bytes, running_servers
from stretto.machine import gpus
from stretto.releases.printing import gigabytes

HELD_BYTES = 500_000_000  # processes with less are not named
MAX_NAMED = 4


def holders(gpu: int | None) -> str:
    """Return the largest holders in words, a server of this user with all its processes; empty if none is known.

    Args:
        gpu: Number of the GPU in nvidia-smi; None for the main memory.
    """
    servers = {pid: server for server in running_servers() for pid in pids_of(server)}
    held = Counter[str]()
    for pid, name, num_bytes in _in_memory() if gpu is None else _on_gpu(gpu):
        server = servers.get(pid)
        held[f"{name} (pid {pid})" if server is None else _title(server)] += num_bytes
    largest = [(name, size) for name, size in held.most_common(MAX_NAMED) if size >= HELD_BYTES]
    return ", ".join(f"{name} {gigabytes(size)}" for name, size in largest)


def pids_of(server: RunningServer) -> list[int]:
    """Return the process ids of a launcher and of all processes that it has started."""
    return [server.pid, *(process.pid for process in server.processes())]


def _title(server: RunningServer) -> str:
    name = "a server" if server.model is None else server.model.name
    return f"{name} (port {server.ports.get('http', 0)}, stretto serve --stop)"


def _on_gpu(number: int) -> Iterator[tuple[int, str, int]]:
    """Yield pid, name and memory of the processes on a GPU."""
    for process in gpus.processes(number):
        yield process.pid, Path(process.name).name, process.num_bytes


def _in_memory() -> Iterator[tuple[int, str, int]]:
    """Yield pid, name and memory of the processes whose memory this user may read."""
    for path in PROC.glob("[0-9]*/comm"):
        with suppress(*GONE):
            name = path.read_text().strip()
            pid = int(path.parent.name)
            yield pid, name, memory_bytes([pid])
