"""This user's running servers, with the memory and the number of requests of each."""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stretto.launcher import background
from stretto.launcher.launch import SHARED_MEMORY, pid_files
from stretto.launcher.options import ServedModel
from stretto.launcher.processes import GONE, PROC, ProcessSnapshot, descendants
from stretto.triton_io.flow import tables_of

SERVER_NAME = "tritonserver"
PSS = re.compile(rb"^Pss:\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A running launcher with its server.

    Attributes:
        state: State of the server: one of `background.STATES`.
        reason: Why the server is not ready; empty if nothing is wrong.
        model: None if a launcher of an earlier version runs the server.
    """

    pid: int
    state: str
    reason: str
    model: ServedModel | None
    ports: dict[str, int]
    pid_file: Path
    log: str

    def processes(self) -> list[ProcessSnapshot]:
        """Return the processes that the launcher has started."""
        return descendants(self.pid)


def running_servers() -> list[RunningServer]:
    """Return this user's servers, in the order of their HTTP ports."""
    servers: dict[int, RunningServer] = {}
    for path in pid_files(SHARED_MEMORY):
        record = background.read(path)
        if record is not None:
            servers[record["pid"]] = _server(path, record)
    return sorted(servers.values(), key=lambda server: (server.ports.get("http", 0), server.pid))


def _server(path: Path, record: dict[str, Any]) -> RunningServer:
    return RunningServer(
        pid=record["pid"],
        state=record["state"],
        reason=str(record.get("reason", "")),
        model=background.model_of(record),
        ports=dict(record.get("ports") or {}),
        pid_file=path,
        log=str(record.get("log", "")),
    )


def memory_bytes(pids: Iterable[int]) -> int:
    """Return the main memory of processes.

    Memory that processes share counts once, in equal parts (PSS, proportional set size). A process that has ended
    counts as 0.
    """
    num_kib = 0
    for pid in pids:
        with suppress(*GONE):
            match = PSS.search((PROC / str(pid) / "smaps_rollup").read_bytes())
            num_kib += 0 if match is None else int(match[1])
    return num_kib << 10


def num_requests(processes: Iterable[ProcessSnapshot], directory: Path = SHARED_MEMORY) -> int:
    """Return the number of utterances in progress on the servers among these processes."""
    pids = [process.pid for process in processes if process.name == SERVER_NAME]
    return sum(table.num_active() for pid in pids for table in tables_of(pid, directory))
