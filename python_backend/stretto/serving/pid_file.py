"""The file in which a launcher says who it is, where it listens and whether it is ready."""

import json
import os
import signal
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stretto.serving.processes import birth, read_process

STOP_SECONDS = 60.0  # of a launcher that does not say how long it may take
STATES = ("starting", "ready", "unready", "waiting", "draining")


def write(
    path: Path | None, state: str, ports: dict[str, int], log: str, reason: str = "", stop_seconds: float = STOP_SECONDS
) -> None:
    """Replace the file, so that a reader never sees half of it; does nothing without a path.

    reason: why the server is not ready, where something is wrong. stop_seconds: the longest that its stop takes.
    """
    assert state in STATES, state
    if path is None:
        return
    record: dict[str, Any] = {
        "pid": os.getpid(),
        "born": birth(os.getpid()),
        "state": state,
        "ports": ports,
        "log": log,
    }
    record |= {"stop_seconds": stop_seconds, "version": version("stretto")}
    if reason:
        record["reason"] = reason
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(record) + "\n")
    scratch.replace(path)


def read(path: Path) -> dict[str, Any] | None:
    """The record of a launcher that is alive, or None."""
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return record if _is_alive(record) else None


def _is_alive(record: dict[str, Any]) -> bool:
    """Whether the process that wrote the record lives: its pid may be another's by now."""
    return read_process(record["pid"]) is not None and birth(record["pid"]) == record.get("born")


def remove(path: Path | None) -> None:
    """Remove the file if it is ours."""
    record = None if path is None else read(path)
    if path is not None and record is not None and record["pid"] == os.getpid():
        path.unlink(missing_ok=True)


def stop(path: Path) -> bool:
    """Ask the launcher to drain and stop, and wait until it has; False when none was running.

    TimeoutError where it takes longer than it said it would.
    """
    record = read(path)
    if record is None:
        return False
    os.kill(record["pid"], signal.SIGTERM)
    stop_seconds = record.get("stop_seconds", STOP_SECONDS)
    deadline = time.monotonic() + stop_seconds
    while _is_alive(record):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the launcher {record['pid']} has not stopped within {stop_seconds:g} s")
        time.sleep(0.1)
    return True
